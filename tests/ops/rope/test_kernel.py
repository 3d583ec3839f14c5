"""The kernel in Triton's interpreter: numbers over heads, widths, types and layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aitrain.ops.rope import reference
from aitrain.ops.rope.op import rope_qk
from ops.passes import assert_passes, draw

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITRAIN_OPS", "triton")
    torch.manual_seed(0)


def tables(rows: int, rotated: int, batch: int | None = 1) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.randn(*(() if batch is None else (batch,)), rows, rotated // 2) * 3
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def both(*how: Any, heads_dim: int = 1, **words: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the op and its definition with everything but q and k filled in."""

    def torchs(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
        views = [x.transpose(1, 2) if heads_dim == 2 else x for x in (q, k)]
        turned = [reference.rope(x, *(t.to(x.dtype) for t in how[:2]), *how[2:], **words) for x in views]
        return tuple(x.transpose(1, 2) if heads_dim == 2 else x for x in turned)

    return lambda q, k: rope_qk(q, k, *how, heads_dim=heads_dim, **words), torchs


HEADS = {
    "one head each": (1, 1, 1, 1, 2),
    "more queries than keys": (2, 4, 2, 3, 16),
    "odd numbers of heads": (1, 9, 3, 5, 8),
    "more keys than queries": (1, 1, 5, 3, 8),
    "a width that is no power of two": (1, 3, 1, 4, 24),
    "pairs in odd number": (2, 2, 1, 3, 10),
    "several programs per token": (1, 40, 5, 2, 128),
    "no tokens": (2, 2, 1, 0, 8),
    "no batch": (0, 2, 1, 3, 8),
}


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("heads", HEADS.values(), ids=list(HEADS))
def test_heads(heads: tuple[int, ...], dtype: torch.dtype, interleaved: bool) -> None:
    b, q_heads, k_heads, length, width = heads
    inputs = {"q": draw(b, q_heads, length, width, dtype=dtype), "k": draw(b, k_heads, length, width, dtype=dtype)}
    upstream = [draw(b, q_heads, length, width, dtype=dtype, scale=2.0), draw(b, k_heads, length, width, dtype=dtype)]
    cos, sin = (table.to(dtype) for table in tables(length, width))
    assert_passes(*both(cos, sin, interleaved=interleaved), inputs, upstream)


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("rotated", [2, 6, 14])
def test_other_features_pass(rotated: int, interleaved: bool) -> None:
    inputs = {"q": draw(2, 3, 4, 16), "k": draw(2, 2, 4, 16)}
    upstream = [draw(2, 3, 4, 16), draw(2, 2, 4, 16)]
    assert_passes(*both(*tables(4, rotated, 2), interleaved=interleaved), inputs, upstream)


@pytest.mark.parametrize("batch", [1, 2, None])
@pytest.mark.parametrize("heads_dim", [1, 2])
def test_a_table_per_sequence_or_for_all(batch: int | None, heads_dim: int) -> None:
    q, k = ((2, 3, 5, 8), (2, 1, 5, 8)) if heads_dim == 1 else ((2, 5, 3, 8), (2, 5, 1, 8))
    inputs = {"q": draw(*q), "k": draw(*k)}
    assert_passes(*both(*tables(5, 8, batch), heads_dim=heads_dim), inputs, [draw(*q), draw(*k)])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_packed_positions(batch: int, kind: torch.dtype) -> None:
    # three sequences behind one another, counted from 0 each
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]], dtype=kind)[:batch]
    inputs = {"q": draw(2, 3, 6, 8), "k": draw(2, 1, 6, 8)}
    assert_passes(*both(*tables(7, 8, None), positions), inputs, [draw(2, 3, 6, 8), draw(2, 1, 6, 8)])


@pytest.mark.parametrize("layout", ["columns", "turned", "swapped", "expanded"])
def test_layouts(layout: str) -> None:
    inputs = {"q": draw(2, 3, 5, 8, layout=layout), "k": draw(2, 2, 5, 8, layout=layout)}
    upstream = [draw(2, 3, 5, 8, layout=layout), draw(2, 2, 5, 8, layout="plain")]
    assert_passes(*both(*tables(5, 8)), inputs, upstream)


def test_strided_tables() -> None:
    cos, sin = tables(5, 8)
    inputs, upstream = {"q": draw(1, 2, 5, 8), "k": draw(1, 1, 5, 8)}, [draw(1, 2, 5, 8), draw(1, 1, 5, 8)]
    wide = torch.cat((cos, sin), -1)
    assert_passes(*both(wide[..., :8], wide[..., 8:]), inputs, upstream)
    assert_passes(*both(cos.transpose(1, 2).contiguous().transpose(1, 2), sin), inputs, upstream)


def test_views_of_one_projection_are_read_and_written_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    projected = draw(2, 5, (3 + 2 + 2) * 8)
    q = projected[..., :24].view(2, 5, 3, 8).transpose(1, 2)
    k = projected[..., 24:40].view(2, 5, 2, 8).transpose(1, 2)
    from aitrain.ops.rope import kernel

    read = []
    rotate = kernel.rotate
    monkeypatch.setattr(kernel, "rotate", lambda *all_: read.extend(x.data_ptr() for x in all_[:2]) or rotate(*all_))
    q_out, k_out = rope_qk(q, k, *tables(5, 8))
    assert read == [q.data_ptr(), k.data_ptr()], "a copy was made"
    assert q_out.transpose(1, 2).is_contiguous() and k_out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated", [4, 8])
def test_in_place(rotated: int, interleaved: bool) -> None:
    packed = draw(2, 5, 5 * 8)
    q, k = packed.view(2, 5, 5, 8)[:, :, :3].transpose(1, 2), packed.view(2, 5, 5, 8)[:, :, 3:].transpose(1, 2)
    cos, sin = tables(5, rotated)
    expected = [reference.rope(x, cos, sin, None, interleaved) for x in (q, k)]
    found = rope_qk(q, k, cos, sin, interleaved=interleaved, inplace=True)
    assert found[0] is q and found[1] is k
    torch.testing.assert_close(list(found), expected)


def test_a_position_outside_the_table_shows() -> None:
    q, k = draw(1, 2, 3, 8), draw(1, 1, 3, 8)
    for bad in (5, -1):
        q_out, k_out = rope_qk(q, k, *tables(5, 8, None), torch.tensor([[4, bad, 0]]))
        for out in (q_out, k_out):
            assert out[:, :, 1].isnan().all() and not out[:, :, [0, 2]].isnan().any()


def test_bfloat16_within_the_interpreters_truncation() -> None:
    q, k = draw(1, 2, 3, 8, dtype=torch.bfloat16), draw(1, 1, 3, 8, dtype=torch.bfloat16)
    cos, sin = tables(3, 8)
    # Triton's interpreter truncates when it stores bf16: one unit of 2**-8 instead of a half
    found, expected = rope_qk(q, k, cos, sin)[0], reference.rope(q, cos, sin)
    torch.testing.assert_close(found.float(), expected.float(), rtol=2**-7, atol=1e-6)


def test_tiles_cover_all_heads() -> None:
    from aitrain.ops.rope.kernel import tile

    for q_heads, k_heads, half in (
        (1, 1, 1),
        (9, 3, 32),
        (32, 8, 64),
        (64, 8, 64),
        (128, 128, 64),
        (28, 4, 40),
        (8, 1, 128),
    ):
        groups, q, k, block, warps = tile(q_heads, k_heads, half)
        assert groups * q >= q_heads and groups * k >= k_heads and block >= half
        assert max(q, k) * 2 * block <= 4096 and 1 <= warps <= 8
