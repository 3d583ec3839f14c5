"""Documents through PyTorch's flex_attention: one compiled kernel that skips the blocks no document covers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from aitrain.ops.attention.documents import Documents
from aitrain.ops.attention.pattern import Pattern


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, pattern: Pattern, compiled: bool = True
) -> torch.Tensor:
    """Attend within documents.

    Args:
        q: Queries, shape (T, H, D).
        k: Keys, shape (T, Hk, D).
        v: Values, shape (T, Hk, Dv).
        documents: The documents of the T tokens; the block mask is kept there for the next layer.
        pattern: What a query sees, without dropout.
        compiled: Whether the kernel is compiled. Without it all scores of the pack are laid out: for tests.

    Returns:
        Shape (T, H, Dv).

    Source:
        https://pytorch.org/blog/flexattention/, document masking.
    """
    rows = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    attended: torch.Tensor = _runner(compiled)(
        *rows,
        score_mod=None if pattern.softcap is None else _cap(pattern.softcap),
        block_mask=_block_mask(documents, pattern, compiled),
        scale=pattern.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return attended.squeeze(0).transpose(0, 1)


@cache
def _runner(compiled: bool) -> Callable[..., Any]:
    plain: Callable[..., Any] = flex_attention
    return torch.compile(plain) if compiled else plain


@cache  # the same function each time, or the kernel is compiled again
def _cap(softcap: float) -> Callable[..., torch.Tensor]:
    def cap(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def _block_mask(documents: Documents, pattern: Pattern, compiled: bool) -> BlockMask:
    key = ("flex", pattern.causal, pattern.window)
    if key not in documents.derived:
        # compiled, or the mask would be laid out token by token before it is summed up in blocks
        documents.derived[key] = create_block_mask(
            _seen(documents.of_tokens(), pattern.causal, pattern.window),
            None,
            None,
            documents.total,
            documents.total,
            device=documents.cu_seqlens.device,
            _compile=compiled,
        )
    mask: BlockMask = documents.derived[key]
    return mask


def _seen(document: torch.Tensor, causal: bool, window: int | None) -> Callable[..., torch.Tensor]:
    def seen(_b: torch.Tensor, _h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        same = document[query] == document[key]
        if causal:
            same = same & (query >= key)
        if window is not None:
            same = same & (query - key < window) & (key - query < window)
        return same

    return seen
