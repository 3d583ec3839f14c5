"""The kernels in Triton's interpreter: numbers over shapes, types and layouts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from aitrain.ops.glu.op import geglu, swiglu
from aitrain.ops.glu.reference import ACTIVATIONS
from ops.passes import assert_passes, draw

pytest.importorskip("triton", reason="Triton is not installed")

OURS: dict[str, Callable[..., torch.Tensor]] = {
    "silu": swiglu,
    "gelu_tanh": geglu,
    "gelu": lambda gate, up=None: geglu(gate, up, approximate="none"),
}


def torchs(activation: str) -> Callable[..., torch.Tensor]:
    """Return the same in torch, rounded once as the kernel does it."""

    def once(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
        left, right = (gate, up) if up is not None else gate.chunk(2, -1)
        wide = torch.promote_types(gate.dtype, torch.float32)
        g = left.to(wide)
        kind = {"gelu_tanh": "tanh", "gelu": "none"}.get(activation, "")
        return ((F.gelu(g, approximate=kind) if kind else F.silu(g)) * right.to(wide)).to(gate.dtype)

    return once


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITRAIN_OPS", "triton")
    torch.manual_seed(0)


SHAPES = {
    "one number": (1, 1),
    "odd": (3, 65),
    "a power of two": (2, 2, 128),
    "two blocks per row": (3, 530),
    "one dimension": (17,),
    "no rows": (0, 8),
    "no batch": (2, 0, 8),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_two_tensors(shape: tuple[int, ...], dtype: torch.dtype, activation: str) -> None:
    # a wide gate reaches both ends of the activation
    inputs = {"gate": draw(*shape, dtype=dtype, scale=3.0), "up": draw(*shape, dtype=dtype)}
    assert_passes(OURS[activation], torchs(activation), inputs, [draw(*shape, dtype=dtype, scale=2.0)])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(3, 130), (2, 3, 64), (0, 8)])
def test_packed(shape: tuple[int, ...], activation: str) -> None:
    inputs = {"gate": draw(*shape, scale=2.0)}
    half = (*shape[:-1], shape[-1] // 2)
    assert_passes(OURS[activation], torchs(activation), inputs, [draw(*half)])


@pytest.mark.parametrize("layout", ["columns", "turned", "swapped", "expanded"])
def test_layouts(layout: str) -> None:
    shape = (2, 3, 4, 10)
    inputs = {"gate": draw(*shape, layout=layout), "up": draw(*shape, layout="plain")}
    assert_passes(swiglu, torchs("silu"), inputs, [draw(*shape, layout=layout)])
    inputs = {"gate": draw(*shape), "up": draw(*shape, layout=layout)}
    assert_passes(swiglu, torchs("silu"), inputs, [draw(*shape)])


def test_halves_of_one_tensor_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    from aitrain.ops.glu import kernel

    seen = []
    rows_of = kernel.rows_of
    monkeypatch.setattr(kernel, "rows_of", lambda x: seen.append((x, rows_of(x))) or rows_of(x))
    packed = draw(2, 3, 20).requires_grad_()
    swiglu(packed[..., :10], packed[..., 10:]).backward(draw(2, 3, 10))
    swiglu(packed).backward(draw(2, 3, 10))
    assert len(seen) == 10 and all(x.data_ptr() == rows.data_ptr() for x, rows in seen)


def test_packed_gradient_is_one_tensor() -> None:
    from aitrain.ops.glu import kernel

    packed, grad = draw(3, 20), draw(3, 10)
    found, none = kernel.backward(grad, packed, None, "silu")
    left, right = kernel.backward(grad, packed[:, :10], packed[:, 10:], "silu")
    assert none is None and right is not None
    assert torch.equal(found, torch.cat([left, right], -1))


def test_bfloat16_within_the_interpreters_truncation() -> None:
    gate, up = draw(5, 40, dtype=torch.bfloat16), draw(5, 40, dtype=torch.bfloat16)
    # Triton's interpreter truncates when it stores bf16: one unit of 2**-8 instead of a half
    expected = torchs("silu")(gate, up).float()
    torch.testing.assert_close(swiglu(gate, up).float(), expected, rtol=2**-7, atol=1e-6)


def test_blocks_waste_little() -> None:
    from aitrain.ops.glu.kernel import block

    assert [block(f) for f in (14336, 8960, 11008, 1536, 768, 100, 3)] == [2048, 1024, 1024, 512, 512, 128, 16]
    for features in (1, 500, 3072, 8192, 9216, 13824, 28672):
        size = block(features)
        assert (
            features <= -(-features // size) * size <= max(1.08 * features, 2 * features if features < 512 else 0, 16)
        )
