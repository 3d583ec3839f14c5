"""Triton kernel that rotates queries and keys of a token together; its gradient is the same by minus the angle."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from aitrain.ops.launching import warps

# B = batch, H = heads, L = positions, D = width of a head, R = features that are rotated, HALF = R / 2


@triton.jit
def _pairs(
    ptr, at, inside, col, HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr, NEIGHBOURS: tl.constexpr
):
    """Load the first and the second number of every pair, in float32."""
    if NEIGHBOURS:
        both = tl.load(ptr + at[:, None] + tl.arange(0, 2 * BLOCK)[None, :], mask=inside, other=0.0)
        a, b = tl.split(tl.reshape(both, (HEADS, BLOCK, 2)))
    else:
        a = tl.load(ptr + at[:, None] + col, mask=inside, other=0.0)
        b = tl.load(ptr + at[:, None] + col + HALF, mask=inside, other=0.0)
    return a.to(tl.float32), b.to(tl.float32)


@triton.jit
def _keep(
    ptr, at, inside, col, a, b, HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr, NEIGHBOURS: tl.constexpr
):
    """Store rotated pairs."""
    a = a.to(ptr.dtype.element_ty)
    b = b.to(ptr.dtype.element_ty)
    if NEIGHBOURS:
        both = tl.reshape(tl.join(a, b), (HEADS, 2 * BLOCK))
        tl.store(ptr + at[:, None] + tl.arange(0, 2 * BLOCK)[None, :], both, mask=inside)
    else:
        tl.store(ptr + at[:, None] + col, a, mask=inside)
        tl.store(ptr + at[:, None] + col + HALF, b, mask=inside)


@triton.jit
def _rest(ptr, out_ptr, at, out_at, head_inside, HALF: tl.constexpr, REST: tl.constexpr, BLOCK_REST: tl.constexpr):
    """Copy the features that are not rotated."""
    col = tl.arange(0, BLOCK_REST)[None, :]
    inside = head_inside[:, None] & (col < REST)
    kept = tl.load(ptr + at[:, None] + 2 * HALF + col, mask=inside, other=0.0)
    tl.store(out_ptr + out_at[:, None] + 2 * HALF + col, kept, mask=inside)


@triton.jit
def _rotate(
    q_ptr,
    k_ptr,
    q_out_ptr,
    k_out_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    length,
    table_rows,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    q_out_batch,
    q_out_head,
    q_out_token,
    k_out_batch,
    k_out_head,
    k_out_token,
    table_batch,
    table_token,
    positions_batch,
    positions_token,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    BACK: tl.constexpr,
):
    batch = (tl.program_id(0) // length).to(tl.int64)
    token = (tl.program_id(0) % length).to(tl.int64)
    col = tl.arange(0, BLOCK)[None, :]
    if positions_ptr is not None:
        row = tl.load(positions_ptr + batch * positions_batch + token * positions_token).to(tl.int64)
        at = row * table_token
    else:
        row = token
        at = batch * table_batch + token * table_token
    # a position outside the table shows as NaN instead of reading foreign memory
    known = (col < HALF) & (row >= 0) & (row < table_rows)
    c = tl.load(cos_ptr + at + col, mask=known, other=float("nan")).to(tl.float32)
    s = tl.load(sin_ptr + at + col, mask=known, other=float("nan")).to(tl.float32)
    if BACK:
        s = -s
    group = tl.program_id(1)
    q = group * Q_BLOCK + tl.arange(0, Q_BLOCK)
    k = group * K_BLOCK + tl.arange(0, K_BLOCK)
    width = tl.arange(0, 2 * BLOCK)[None, :] < 2 * HALF if NEIGHBOURS else col < HALF
    q_inside = (q < Q_HEADS)[:, None] & width
    k_inside = (k < K_HEADS)[:, None] & width
    q_at = batch * q_batch + token * q_token + q.to(tl.int64) * q_head
    k_at = batch * k_batch + token * k_token + k.to(tl.int64) * k_head
    q_out_at = batch * q_out_batch + token * q_out_token + q.to(tl.int64) * q_out_head
    k_out_at = batch * k_out_batch + token * k_out_token + k.to(tl.int64) * k_out_head
    # everything is on its way before the first store, past which no load is moved
    qa, qb = _pairs(q_ptr, q_at, q_inside, col, HALF, BLOCK, Q_BLOCK, NEIGHBOURS)
    ka, kb = _pairs(k_ptr, k_at, k_inside, col, HALF, BLOCK, K_BLOCK, NEIGHBOURS)
    if REST > 0:
        _rest(q_ptr, q_out_ptr, q_at, q_out_at, q < Q_HEADS, HALF, REST, BLOCK_REST)
        _rest(k_ptr, k_out_ptr, k_at, k_out_at, k < K_HEADS, HALF, REST, BLOCK_REST)
    _keep(q_out_ptr, q_out_at, q_inside, col, qa * c - qb * s, qb * c + qa * s, HALF, BLOCK, Q_BLOCK, NEIGHBOURS)
    _keep(k_out_ptr, k_out_at, k_inside, col, ka * c - kb * s, kb * c + ka * s, HALF, BLOCK, K_BLOCK, NEIGHBOURS)


class Tile(NamedTuple):
    """How the heads of a token are divided."""

    groups: int
    """Programs per token."""

    q_heads: int
    k_heads: int
    block: int
    """Pairs of a head: a power of two."""

    warps: int
    """Of 32 lanes; 8 at most."""


@cache
def tile(q_heads: int, k_heads: int, half: int, rest: int = 0) -> Tile:
    """Return how the heads of a token are divided: at most 4,096 numbers of queries per program.

    Args:
        q_heads: Of the queries.
        k_heads: Of the keys.
        half: Pairs of a head.
        rest: Features of a head that are copied.
    """
    block = max(8, triton.next_power_of_2(half))
    groups = triton.cdiv(triton.next_power_of_2(max(q_heads, k_heads)) * 2 * block, 4096)
    q, k = (triton.next_power_of_2(triton.cdiv(heads, groups)) for heads in (q_heads, k_heads))
    numbers = (q + k) * (2 * block + (triton.next_power_of_2(rest) if rest else 0))
    return Tile(groups, q, k, block, min(8, triton.next_power_of_2(triton.cdiv(numbers, 2048))))


def rotate(
    q: torch.Tensor,
    k: torch.Tensor,
    q_out: torch.Tensor,
    k_out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None,
    interleaved: bool,
    back: bool,
) -> None:
    """Launch the rotation of `q` and `k` into `q_out` and `k_out`, which may be `q` and `k` themselves.

    Args:
        q: Shape (B, Hq, L, D), any strides with neighbouring features side by side.
        k: Shape (B, Hk, L, D), likewise.
        q_out: As `q`.
        k_out: As `k`.
        cos: Shape (B or 1, L, R), or (rows, R) with positions.
        sin: Of the shape and strides of `cos`.
        positions: Shape (B or 1, L).
        interleaved: Whether neighbours are a pair.
        back: Whether to rotate by minus the angle.
    """
    batch, q_heads, length, width = q.shape
    if q.numel() == 0:
        return
    half, k_heads = cos.shape[-1] // 2, k.shape[1]
    rest = 0 if q_out is q else width - 2 * half
    groups, q_block, k_block, block, lanes = tile(q_heads, k_heads, half, rest)
    table_batch = cos.stride(0) if positions is None and cos.shape[0] > 1 else 0
    strides = [t.stride(i) for t in (q, k, q_out, k_out) for i in range(3)]
    spots = (0, 0) if positions is None else (positions.stride(0) if positions.shape[0] > 1 else 0, positions.stride(1))
    with torch.cuda.device_of(q):
        _rotate[(batch * length, groups)](
            q,
            k,
            q_out,
            k_out,
            cos,
            sin,
            positions,
            length,
            cos.shape[-2],
            *strides,
            table_batch,
            cos.stride(-2),
            *spots,
            Q_HEADS=q_heads,
            K_HEADS=k_heads,
            Q_BLOCK=q_block,
            K_BLOCK=k_block,
            HALF=half,
            BLOCK=block,
            REST=rest,
            BLOCK_REST=triton.next_power_of_2(max(1, rest)),
            NEIGHBOURS=interleaved,
            BACK=back,
            num_warps=warps(lanes),
        )
