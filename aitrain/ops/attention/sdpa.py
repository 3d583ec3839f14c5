"""Documents through PyTorch's own attention on any device, without a mask over the pack.

A mask of (tokens, tokens) would cost its square in memory and time, and weight 0 times NaN would carry the NaN of one
document into another. So documents of about the same length go through together as a batch, each its own row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from aitrain.ops.attention.documents import Documents
from aitrain.ops.attention.pattern import Pattern

BLOCK = 512
"""Queries that are scored at a time where a mask or all scores have to be laid out."""

# T = tokens of the pack, H = heads, D = width of a head, n = documents in a batch, P = tokens they are padded to


@dataclass(frozen=True)
class _Batch:
    """Documents that go through together."""

    documents: int
    padded: int
    slots: torch.Tensor | None
    """Place of every token in the padded (n * P) rows; None = there is no padding."""

    tokens: int


@dataclass(frozen=True)
class _Plan:
    batches: list[_Batch]
    order: torch.Tensor | None
    """Tokens in the order of the batches; None = they lie so already."""

    back: torch.Tensor | None


def in_batches(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, pattern: Pattern
) -> torch.Tensor:
    """Attend within documents, those of about the same length together.

    Args:
        q: Queries, shape (T, H, D).
        k: Keys, shape (T, Hk, D) with H a multiple of Hk.
        v: Values, shape (T, Hk, Dv).
        documents: The documents of the T tokens.
        pattern: What a query sees.

    Returns:
        Shape (T, H, Dv).
    """
    if not q.shape[0]:
        return _nothing(q, k, v)
    # padding follows a document's tokens, where only a causal pattern cannot see it
    key = ("batches", pattern.causal)
    if key not in documents.derived:
        documents.derived[key] = _plan(documents.lengths(), pattern.causal, q.device)
    plan: _Plan = documents.derived[key]
    if plan.order is not None:
        q, k, v = (x.index_select(0, plan.order) for x in (q, k, v))
    out, begin = [], 0
    for batch in plan.batches:
        here = slice(begin, begin + batch.tokens)
        q_rows, k_rows, v_rows = (_as_rows(x[here], batch) for x in (q, k, v))
        flat = attend_rows(q_rows, k_rows, v_rows, pattern).transpose(1, 2).flatten(0, 1)
        out.append(flat if batch.slots is None else flat.index_select(0, batch.slots))
        begin += batch.tokens
    joined = torch.cat(out) if len(out) > 1 else out[0]
    return joined if plan.back is None else joined.index_select(0, plan.back)


def one_by_one(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, pattern: Pattern
) -> torch.Tensor:
    """Attend within documents, one after another: the plain way, for comparison.

    Args:
        q: Queries, shape (T, H, D).
        k: Keys, shape (T, Hk, D) with H a multiple of Hk.
        v: Values, shape (T, Hk, Dv).
        documents: The documents of the T tokens.
        pattern: What a query sees.

    Returns:
        Shape (T, H, Dv).
    """
    if not q.shape[0]:
        return _nothing(q, k, v)
    out, begin = [], 0
    for length in filter(None, documents.lengths()):
        q_row, k_row, v_row = (x[begin : begin + length].transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out.append(attend_rows(q_row, k_row, v_row, pattern).squeeze(0).transpose(0, 1))
        begin += length
    return torch.cat(out)


def attend_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """Attend within rows that are one document each.

    Args:
        q: Queries, shape (n, H, P, D).
        k: Keys, shape (n, Hk, P, D).
        v: Values, shape (n, Hk, P, Dv).
        pattern: What a query sees.

    Returns:
        Shape (n, H, P, Dv).
    """
    length = q.shape[2]
    window = pattern.window if pattern.window is not None and pattern.window < length else None
    if window is None and pattern.softcap is None:
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=pattern.dropout,
            is_causal=pattern.causal and length > 1,
            scale=pattern.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
    parts = []
    for begin in range(0, length, BLOCK):
        end = min(begin + BLOCK, length)
        first = 0 if window is None else max(0, begin - window + 1)
        last = end if pattern.causal else length if window is None else min(length, end + window - 1)
        mask = _seen(begin, end, first, last, pattern, q.device)
        some = (q[:, :, begin:end], k[:, :, first:last], v[:, :, first:last], mask, pattern)
        if length > BLOCK and torch.is_grad_enabled():  # else every block's scores live until the backward pass
            parts.append(checkpoint(attend_masked, *some, use_reentrant=False))
        else:
            parts.append(attend_masked(*some))
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def attend_masked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, pattern: Pattern
) -> torch.Tensor:
    """Attend where a mask says so, with the scale, cap and dropout of a pattern (not its window).

    Args:
        q: Queries, shape (n, H, Q, D).
        k: Keys, shape (n, Hk, K, D).
        v: Values, shape (n, Hk, K, Dv).
        mask: True where a query sees a key, shape (Q, K) or (n, 1, Q, K).
        pattern: Scale, cap and dropout.

    Returns:
        Shape (n, H, Q, Dv).
    """
    if pattern.softcap is None:
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=pattern.dropout,
            scale=pattern.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
    n, heads, queries, width = q.shape
    shared = heads // k.shape[1]
    grouped = q.unflatten(1, (k.shape[1], shared))
    scores = (grouped @ k.unsqueeze(2).transpose(-1, -2)) * pattern.scale_of(width)
    wide = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    capped = pattern.softcap * torch.tanh(wide / pattern.softcap)
    mask = mask if mask.dim() == 2 else mask.unsqueeze(2)
    weights = torch.softmax(capped.masked_fill(~mask, torch.finfo(capped.dtype).min), -1)
    weights = F.dropout(weights, pattern.dropout).to(v.dtype)
    return (weights @ v.unsqueeze(2)).flatten(1, 2)


def _seen(begin: int, end: int, first: int, last: int, pattern: Pattern, device: torch.device) -> torch.Tensor:
    """Which of the keys from `first` to `last` the queries from `begin` to `end` see."""
    back = torch.arange(begin, end, device=device)[:, None] - torch.arange(first, last, device=device)
    seen = back >= 0 if pattern.causal else torch.ones_like(back, dtype=torch.bool)
    return seen if pattern.window is None else seen & (back.abs() < pattern.window)


def _as_rows(x: torch.Tensor, batch: _Batch) -> torch.Tensor:
    """(tokens, H, D) to (n, H, P, D), padded with zeros."""
    if batch.slots is not None:
        x = x.new_zeros(batch.documents * batch.padded, *x.shape[1:]).index_copy(0, batch.slots, x)
    return x.unflatten(0, (batch.documents, batch.padded)).transpose(1, 2)


def _plan(lengths: list[int], padding: bool, device: torch.device) -> _Plan:
    """Put documents of one rounded length into one batch."""
    begins, begin = [], 0
    for length in lengths:
        begins.append(begin)
        begin += length
    groups: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        if length:
            groups.setdefault(_rounded(length) if padding else length, []).append(number)
    batches, order = [], []
    for members in groups.values():
        padded = max(lengths[number] for number in members)
        order += [torch.arange(begins[m], begins[m] + lengths[m]) for m in members]
        tokens = sum(lengths[m] for m in members)
        slots = None
        if tokens < padded * len(members):
            places = [torch.arange(row * padded, row * padded + lengths[m]) for row, m in enumerate(members)]
            slots = torch.cat(places).to(device)
        batches.append(_Batch(len(members), padded, slots, tokens))
    joined = torch.cat(order)
    if torch.equal(joined, torch.arange(len(joined))):
        return _Plan(batches, None, None)
    return _Plan(batches, joined.to(device), joined.argsort().to(device))


def _rounded(length: int) -> int:
    """Round up by less than an eighth: eight lengths between a power of two and the next."""
    step = 1 << max((length - 1).bit_length() - 4, 0)
    return -(-length // step) * step


def _nothing(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The attention of no tokens, which still knows where its gradients go."""
    return q.new_zeros(0, q.shape[1], v.shape[2]) + (q.sum() + k.sum() + v.sum()) * 0
