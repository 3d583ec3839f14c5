"""How FlashAttention's functions are called: stand-ins with their documented meaning take the call on the CPU.

The kernels themselves need a GPU: tests/gpu/ops/test_attention.py runs them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from aitrain.ops.attention import varlen
from aitrain.ops.attention.documents import Documents
from aitrain.ops.attention.pattern import Pattern
from ops.attention.plain import PACKS, PATTERNS, bounds, each_alone, tensors


def documented(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    window: tuple[int, int],
    scale: float | None,
    softcap: float = 0.0,
) -> torch.Tensor:
    """What the packages' documentation promises: query i sees keys i - left to i + right; -1 is no limit."""
    left, right = (float("inf") if side == -1 else side for side in window)
    shared = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(shared, 1) for x in (k, v))
    out = [q[:0, :, : v.shape[2]]]
    for begin, end in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        assert end - begin <= longest
        scores = torch.einsum("ihd,jhd->hij", q[begin:end], k[begin:end])
        scores = scores * (q.shape[2] ** -0.5 if scale is None else scale)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        ahead = torch.arange(end - begin) - torch.arange(end - begin)[:, None]
        hidden = (ahead > right) | (-ahead > left)
        out.append(torch.einsum("hij,jhd->ihd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v[begin:end]))
    return torch.cat(out)


class Called(dict[str, Any]):
    """Options of the last call."""


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[Called]:
    seen = Called()

    def flash_2(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        deterministic: bool = False,
    ) -> torch.Tensor:
        seen.update(dropout_p=dropout_p, deterministic=deterministic)
        assert cu_seqlens_q is cu_seqlens_k and cu_seqlens_q.dtype == torch.int32 and max_seqlen_q == max_seqlen_k
        window = (window_size[0], 0 if causal else window_size[1])
        return documented(q, k, v, cu_seqlens_q, max_seqlen_q, window, softmax_scale, softcap)

    def flash_3(*args: Any, **options: Any) -> tuple[torch.Tensor, None]:
        assert "dropout_p" not in options
        return flash_2(*args, **options), None

    def torchs(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        assert enable_gqa or query.shape[1] == key.shape[1]
        assert isinstance(window_size, tuple), "the function compares it with a tuple to know what is causal"
        return documented(query, key, value, cu_seq_q, max_q, window_size, scale)

    varlen.found.cache_clear()
    for (name, function), stand_in in ((varlen.FLASH[2], flash_2), (varlen.FLASH[3], flash_3), (varlen.TORCHS, torchs)):
        module = ModuleType(name)
        setattr(module, function, stand_in)
        monkeypatch.setitem(sys.modules, name, module)
    yield seen
    varlen.found.cache_clear()


WAYS: dict[str, Callable[..., torch.Tensor]] = {
    "flash 3": lambda *x: varlen.flash(3, *x),
    "flash 2": lambda *x: varlen.flash(2, *x),
    "torch": varlen.torchs,
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("way", WAYS)
def test_call(way: str, pattern: str, called: Called) -> None:
    options = PATTERNS[pattern]
    if way == "torch" and "softcap" in options:
        pytest.skip("has no cap: the choice passes it over")
    for lengths in PACKS.values():
        q, k, v = tensors(lengths)
        documents = Documents(bounds(lengths), sum(lengths), max(lengths))
        found = WAYS[way](q, k, v, documents, Pattern(**options))
        torch.testing.assert_close(found, each_alone(q, k, v, lengths, **options))


def test_same_heads_and_bounds_of_64_bits(called: Called) -> None:
    lengths = [4, 3]
    q, k, v = tensors(lengths, (2, 2))
    documents = Documents(bounds(lengths).long(), 7)
    for way in WAYS.values():
        torch.testing.assert_close(way(q, k, v, documents, Pattern()), each_alone(q, k, v, lengths))


def test_dropout_and_determinism_are_handed_on(called: Called) -> None:
    q, k, v = tensors([3])
    documents = Documents(bounds([3]), 3)
    varlen.flash(2, q, k, v, documents, Pattern(dropout=0.1))
    assert called == {"dropout_p": 0.1, "deterministic": False}
    torch.use_deterministic_algorithms(True)
    try:
        varlen.flash(2, q, k, v, documents, Pattern())
    finally:
        torch.use_deterministic_algorithms(False)
    assert called == {"dropout_p": 0.0, "deterministic": True}


def test_first_version_in_torch_took_a_flag(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    def torchs_2_10(  # noqa: PLR0913
        query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, is_causal: bool = False
    ) -> torch.Tensor:
        return documented(query, key, value, cu_seq_q, max_q, (-1, 0 if is_causal else -1), None)

    monkeypatch.setattr(sys.modules[varlen.TORCHS[0]], varlen.TORCHS[1], torchs_2_10)
    q, k, v = tensors([5, 2], (2, 2))
    for causal in (True, False):
        found = varlen.torchs(q, k, v, Documents(bounds([5, 2]), 7), Pattern(causal))
        torch.testing.assert_close(found, each_alone(q, k, v, [5, 2], causal=causal))


def test_installed_torch_has_what_is_asked_of_it() -> None:
    function, _ = varlen.found(*varlen.TORCHS)
    assert function is not None
    assert varlen.takes(function, "cu_seq_q", "cu_seq_k", "max_q", "max_k", "window_size", "enable_gqa", "scale")
    assert not varlen.takes(function, "softcap")


def test_missing_package_is_told() -> None:
    function, why = varlen.found("flash_attn_of_nobody", "flash_attn_varlen_func")
    assert function is None and "No module named 'flash_attn_of_nobody'" in why
    function, why = varlen.found("math", "flash_attn_varlen_func")
    assert function is None and "has no attribute" in why
