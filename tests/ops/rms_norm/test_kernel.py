"""The kernels in Triton's interpreter: numbers over shapes, types and layouts, and how rows are divided."""

from __future__ import annotations

import pytest
import torch

from aitrain.errors import ShapeError
from aitrain.ops.rms_norm import reference
from aitrain.ops.rms_norm.op import rms_norm
from ops.passes import assert_passes, draw

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITRAIN_OPS", "triton")
    torch.manual_seed(0)


EPS = 0.5  # so large that every formula feels it, and that the gradient of one number alone is no cancellation
SHAPES = {
    "one number": (1, 1),
    "odd": (5, 65),
    "a power of two": (3, 128),
    "four dimensions": (2, 3, 2, 16),
    "more rows than programs, several per program": (301, 48),
    "a row in one program, more rows than programs": (7, 2049),
    "one dimension": (33,),
    "no rows": (0, 8),
}


def plain(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    return reference.rms_norm(x, weight, EPS, 0.0, True)


def summed(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.rms_norm(x + residual, weight, EPS, 1.0, False), x + residual


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_plain(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = {"x": draw(*shape, dtype=dtype), "weight": draw(shape[-1], dtype=dtype)}
    assert_passes(lambda x, weight: rms_norm(x, weight, EPS), plain, inputs, [draw(*shape, dtype=dtype, scale=3.0)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(5, 65), (301, 48), (6, 2056)])
def test_sum_first(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = {
        "x": draw(*shape, dtype=dtype),
        "weight": draw(shape[-1], dtype=dtype),
        "residual": draw(*shape, dtype=dtype),
    }
    upstream = [draw(*shape, dtype=dtype, scale=2.0), draw(*shape, dtype=dtype, scale=0.5)]
    assert_passes(
        lambda x, weight, residual: rms_norm(x, weight, EPS, residual, offset=1.0, cast="gemma"),
        summed,
        inputs,
        upstream,
    )


@pytest.mark.parametrize("layout", ["columns", "turned", "swapped", "expanded"])
def test_layouts(layout: str) -> None:
    inputs = {
        "x": draw(2, 3, 5, 16, layout=layout),
        "weight": draw(16),
        "residual": draw(2, 3, 5, 16, layout="columns" if layout == "swapped" else layout),
    }
    upstream = [draw(2, 3, 5, 16, layout=layout), draw(2, 3, 5, 16, layout=layout)]
    assert_passes(
        lambda x, weight, residual: rms_norm(x, weight, EPS, residual, offset=1.0, cast="gemma"),
        summed,
        inputs,
        upstream,
    )


def test_weight_in_float32_or_none() -> None:
    x, weight = draw(4, 40, dtype=torch.float16), draw(40)
    assert_passes(lambda x, weight: rms_norm(x, weight, EPS), plain, {"x": x, "weight": weight}, [draw(4, 40)])
    assert_passes(lambda x: rms_norm(x, None, EPS), lambda x: plain(x, None), {"x": x}, [draw(4, 40)])


def test_tiny_rows_feel_eps() -> None:
    inputs = {"x": draw(6, 32, scale=1e-3), "weight": draw(32)}
    assert_passes(
        lambda x, weight: rms_norm(x, weight, 1e-6),
        lambda x, weight: reference.rms_norm(x, weight, 1e-6),
        inputs,
        [draw(6, 32)],
    )


def test_casts_round_where_they_say() -> None:
    x, weight = draw(64, 64, dtype=torch.float16), draw(64, dtype=torch.float16)
    llama, gemma = (rms_norm(x, weight, EPS, cast=cast) for cast in ("llama", "gemma"))
    assert (llama != gemma).any(), "on 4,096 numbers the two orders of rounding must differ somewhere"
    for found, first in ((llama, True), (gemma, False)):
        other = reference.rms_norm(x, weight, EPS, 0.0, first)
        # the sums of squares differ in the last bit of float32, and that moves one in 2**12 roundings
        assert (found != other).float().mean() < 0.005


def test_bfloat16_within_the_interpreters_truncation() -> None:
    x, weight = draw(5, 40, dtype=torch.bfloat16), draw(40, dtype=torch.bfloat16)
    # Triton's interpreter truncates when it stores bf16: one unit, twice (norm, product), instead of two halves
    expected = reference.rms_norm(x, weight, EPS, 0.0, True).float()
    torch.testing.assert_close(rms_norm(x, weight, EPS).float(), expected, rtol=2**-6, atol=1e-6)


def test_same_bits_every_time() -> None:
    x, weight = draw(301, 48).requires_grad_(), draw(48).requires_grad_()
    grad = draw(301, 48)
    first, second = (torch.autograd.grad(rms_norm(x, weight), [x, weight], grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_partial_sums_of_many_programs() -> None:
    from aitrain.ops.rms_norm.kernel import _summed

    partial = draw(2, 130, 40)  # three rounds of 64 programs, two blocks of 32 columns
    torch.testing.assert_close(_summed(partial, [torch.float32, torch.float32]), partial.sum(1))
    halves = _summed(partial, [torch.float16, torch.float16])
    torch.testing.assert_close(halves, partial.sum(1).half())
    assert _summed(partial, [torch.float16, torch.float32]).dtype == torch.float32


def test_tiles_fit_every_gpu() -> None:
    from aitrain.ops.rms_norm.kernel import WIDEST, tile

    for features in (1, 16, 17, 64, 576, 4096, 4097, 8192, 16384, WIDEST):
        for backward, centred in ((False, False), (True, False), (True, True)):
            block, rows, warps, ahead = tile(features, backward, centred)
            assert features <= block < max(2 * features, 17)
            assert 4 <= warps <= 16
            assert rows == 1 or block * rows == 2048
            assert not ahead or features % 8 == 0
    with pytest.raises(ShapeError, match="at most 65536"):
        tile(WIDEST + 1)
