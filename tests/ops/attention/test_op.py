"""The public function: what it gives, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from aitrain.errors import RecipeError, ShapeError
from aitrain.ops.attention.choice import SWITCH
from aitrain.ops.attention.documents import Documents
from aitrain.ops.attention.op import attend, packed_attention
from aitrain.ops.attention.pattern import Pattern
from ops.attention.plain import PACKS, PATTERNS, bounds, each_alone, tensors


@pytest.mark.parametrize("forced", ["auto", "sdpa", "documents"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("pack", PACKS)
def test_equals_each_alone(pack: str, heads: tuple[int, int], forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, forced)
    lengths = PACKS[pack]
    q, k, v = tensors(lengths, heads)
    for options in PATTERNS.values():
        found = packed_attention(q, k, v, bounds(lengths), max(lengths), **options)
        torch.testing.assert_close(found, each_alone(q, k, v, lengths, **options), rtol=1e-10, atol=1e-12)


def test_order_of_options_is_as_promised() -> None:
    q, k, v = tensors([5, 6])
    found = packed_attention(q, k, v, bounds([5, 6]), 6, False, 3, 0.2, 1.1, 0.0)
    expected = each_alone(q, k, v, [5, 6], causal=False, window=3, scale=0.2, softcap=1.1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_no_tokens() -> None:
    q, k, v = tensors([0, 0])
    out = packed_attention(q, k, v, bounds([0, 0]))
    assert out.shape == (0, 4, 8)
    out.sum().backward()
    assert q.grad is not None and q.grad.shape == q.shape


def test_documents_are_worked_out_once() -> None:
    lengths = [4, 5]
    q, k, v = tensors(lengths)
    documents = Documents(bounds(lengths), 9)
    attend(q, k, v, documents, Pattern())
    derived = dict(documents.derived)
    attend(q, k, v, documents, Pattern())
    assert derived and all(documents.derived[key] is value for key, value in derived.items())


def test_autocast_casts_as_for_torchs_own() -> None:
    lengths = [4, 5]
    q, k, v = tensors(lengths, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert packed_attention(q, k.bfloat16(), v, bounds(lengths)).dtype == torch.bfloat16
        wide = packed_attention(q.double(), k.double(), v.double(), bounds(lengths))
    assert wide.dtype == torch.float64


def test_compiled_is_not_wrong() -> None:
    lengths = [4, 1, 5]
    q, k, v = (x.detach() for x in tensors(lengths, dtype=torch.float32))

    def layer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        return packed_attention(q * 2, k, v, cu_seqlens).relu()

    compiled = torch.compile(layer, backend="aot_eager")
    for cut in (lengths, [2, 8], [10]):
        torch.testing.assert_close(compiled(q, k, v, bounds(cut)), layer(q, k, v, bounds(cut)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda q, k, v: (q[0], k, v), "each must be of shape"),
        (lambda q, k, v: (q, k[:-1], v), "first number must be the 9 tokens"),
        (lambda q, k, v: (q, k[..., :4], v), "keys need the width"),
        (lambda q, k, v: (q[:, :3], k, v), "which divide q's"),
        (lambda q, k, v: (q, k, v[:, :1]), "as many heads as values"),
        (lambda q, k, v: (q, k.float(), v), "give one type"),
        (lambda q, k, v: (q, k, v.to("meta")), "put them on one device"),
    ],
)
def test_what_does_not_fit(change: object, told: str) -> None:
    assert callable(change)
    q, k, v = change(*(x.detach() for x in tensors([4, 5])))
    with pytest.raises(ShapeError, match=told):
        attend(q, k, v, Documents(bounds([4, 5]), 9), Pattern())


def test_senseless_options() -> None:
    with pytest.raises(RecipeError, match="window=0"):
        packed_attention(*tensors([3]), bounds([3]), window=0)
    with pytest.raises(ShapeError, match="must rise from 0 to the 3 tokens"):
        packed_attention(*tensors([3]), bounds([2]))
