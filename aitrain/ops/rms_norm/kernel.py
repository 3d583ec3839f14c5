"""Triton kernels of the norms over the last dimension: RMSNorm, and with `CENTRED` LayerNorm."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from aitrain.errors import ShapeError
from aitrain.ops.launching import rows_of
from aitrain.ops.launching import warps as lanes

# M = rows (all leading dimensions), N = features, P = programs of the backward pass
WIDEST = 65536
_TILE = 2048
"""Elements of a tile when a row is shorter: in bf16 two 16-byte accesses of 128 threads, or one of 256."""


@triton.jit
def _forward(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    total_ptr,
    mean_ptr,
    rstd_ptr,
    rows,
    x_stride,
    residual_stride,
    eps,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    OFFSET: tl.constexpr,
    CENTRED: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows)[:, None] & (col < N)
    x = tl.load(x_ptr + row[:, None] * x_stride + col, mask=inside, other=0.0)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + row[:, None] * residual_stride + col, mask=inside, other=0.0)
        # the sum is rounded to its type before it is normalised, as the next layer will read it
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x_ptr.dtype.element_ty)
        tl.store(total_ptr + row[:, None] * N + col, x, mask=inside)
    full = x.to(tl.float32)
    if CENTRED:
        mean = tl.sum(full, 1) / N
        tl.store(mean_ptr + row, mean, mask=row < rows)
        full = tl.where(inside, full - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(full * full, 1) / N + tl.full((), eps, tl.float32))
    tl.store(rstd_ptr + row, rstd, mask=row < rows)
    y = full * rstd[:, None]
    if ROUND_FIRST:
        y = y.to(x_ptr.dtype.element_ty).to(tl.float32)
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + col, mask=col < N, other=0.0).to(tl.float32) + OFFSET
    if bias_ptr is not None:
        y += tl.load(bias_ptr + col, mask=col < N, other=0.0).to(tl.float32)
    tl.store(y_ptr + row[:, None] * N + col, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    grad_ptr,
    grad_total_ptr,
    x_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    dx_ptr,
    dweight_ptr,
    dbias_ptr,
    rows,
    grad_stride,
    grad_total_stride,
    x_stride,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    OFFSET: tl.constexpr,
    CENTRED: tl.constexpr,
    AHEAD: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    step = tl.num_programs(0).to(tl.int64) * ROWS
    first = program * ROWS
    row = first + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK)[None, :]
    if weight_ptr is not None and AHEAD:
        weight = tl.load(weight_ptr + col, mask=col < N, other=0.0).to(tl.float32) + OFFSET
    if dweight_ptr is not None:
        dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    if dbias_ptr is not None:
        dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    inside = (row < rows)[:, None] & (col < N)
    if AHEAD:
        x = tl.load(x_ptr + row[:, None] * x_stride + col, mask=inside, other=0.0)
        grad = tl.load(grad_ptr + row[:, None] * grad_stride + col, mask=inside, other=0.0)
    while first < rows:
        here = row
        here_inside = inside
        rstd = tl.load(rstd_ptr + here, mask=here < rows, other=0.0)[:, None]
        if AHEAD:
            # the next rows are on their way while these are reduced
            row += step
            inside = (row < rows)[:, None] & (col < N)
            next_x = tl.load(x_ptr + row[:, None] * x_stride + col, mask=inside, other=0.0)
            next_grad = tl.load(grad_ptr + row[:, None] * grad_stride + col, mask=inside, other=0.0)
        else:
            x = tl.load(x_ptr + here[:, None] * x_stride + col, mask=here_inside, other=0.0)
            grad = tl.load(grad_ptr + here[:, None] * grad_stride + col, mask=here_inside, other=0.0)
            if weight_ptr is not None:
                weight = tl.load(weight_ptr + col, mask=col < N, other=0.0).to(tl.float32) + OFFSET
        if grad_total_ptr is not None and AHEAD:
            past = tl.load(grad_total_ptr + here[:, None] * grad_total_stride + col, mask=here_inside, other=0.0)
        normed = x.to(tl.float32)
        if CENTRED:
            mean = tl.load(mean_ptr + here, mask=here < rows, other=0.0)[:, None]
            normed = tl.where(here_inside, normed - mean, 0.0)
        normed *= rstd
        scaled = grad.to(tl.float32)
        if dweight_ptr is not None:
            dweight += scaled * normed
        if dbias_ptr is not None:
            dbias += scaled
        if weight_ptr is not None:
            scaled *= weight
        dx = scaled - normed * (tl.sum(scaled * normed, 1) / N)[:, None]
        if CENTRED:
            dx -= (tl.sum(scaled, 1) / N)[:, None]
        dx *= rstd
        if grad_total_ptr is not None:
            if not AHEAD:
                past = tl.load(grad_total_ptr + here[:, None] * grad_total_stride + col, mask=here_inside, other=0.0)
            dx += past.to(tl.float32)
        tl.store(dx_ptr + here[:, None] * N + col, dx.to(dx_ptr.dtype.element_ty), mask=here_inside)
        if AHEAD:
            x = next_x
            grad = next_grad
        else:
            row += step
            inside = (row < rows)[:, None] & (col < N)
        first += step
    column = tl.arange(0, BLOCK)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + program * N + column, tl.sum(dweight, 0), mask=column < N)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + program * N + column, tl.sum(dbias, 0), mask=column < N)


@triton.jit
def _column_sums(partial_ptr, out_ptr, programs, columns, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    """Sum the partial results of all programs; axis 1 of the grid counts the matrices (weight, bias)."""
    partial_ptr += tl.program_id(1).to(tl.int64) * programs * columns
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    first = 0
    while first < programs:
        program = first + tl.arange(0, BLOCK_P)
        inside = (program < programs)[:, None] & (column < columns)[None, :]
        total += tl.load(partial_ptr + program[:, None] * columns + column[None, :], mask=inside, other=0.0)
        first += BLOCK_P
    out = tl.sum(total, 0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + tl.program_id(1) * columns + column, out, mask=column < columns)


class Tile(NamedTuple):
    """How a kernel divides the rows."""

    block: int
    """Features of a tile: a power of two."""

    rows: int
    warps: int
    """Of 32 lanes; 16 at most, which is what a block may have on every GPU."""

    ahead: bool
    """Whether the next rows are loaded while these are reduced."""


@cache
def tile(features: int, backward: bool = False, centred: bool = False) -> Tile:
    """Return how the rows are divided.

    Args:
        features: Of one row.
        backward: Whether it is for the backward pass.
        centred: Whether it is for LayerNorm.

    Raises:
        ShapeError: More than 65,536 features.
    """
    block = max(16, triton.next_power_of_2(features))
    if block > WIDEST:
        raise ShapeError(f"a norm over {features} features: at most {WIDEST} fit a kernel; set AITRAIN_OPS=reference")
    rows = max(1, _TILE // block)
    if not backward:
        return Tile(block, rows, min(16, max(4, block * rows // 512)), False)
    # No thread may need more than 128 registers (tests/ops looks at the machine code), so that two programs of 8 warps
    # or one of 16 fill a multiprocessor; where that forbids it, the next rows are not loaded ahead.
    warps = 8 if block <= (2048 if centred else 4096) else 16
    return Tile(block, rows, warps, features % 8 == 0 and block <= (4096 if centred else 8192))


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


class Norm(NamedTuple):
    """Parameters that distinguish the norms."""

    centred: bool = False
    """Whether the mean is subtracted: LayerNorm."""

    offset: float = 0.0
    round_first: bool = False


def forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    norm: Norm,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Launch the forward pass.

    Args:
        x: Shape (..., N), float16, bfloat16 or float32.
        residual: Of the shape and type of `x`, added first.
        weight: Shape (N,), any floating type.
        bias: Shape (N,), any floating type.
        eps: Added to the mean square.
        norm: Which norm.

    Returns:
        y, what was normalised (`x` itself without a residual), mean (M,) of every row where centred, and 1 / rms (M,).

    Raises:
        ShapeError: More than 65,536 features.
    """
    flat, features = rows_of(x), x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(y)
    rstd = torch.empty(flat.shape[0], dtype=torch.float32, device=x.device)
    mean = torch.empty_like(rstd) if norm.centred else None
    if y.numel() == 0:
        return y, total, mean, rstd
    past = None if residual is None else rows_of(residual)
    block, rows, warps, _ = tile(features)
    with torch.cuda.device_of(x):
        _forward[(triton.cdiv(flat.shape[0], rows),)](
            flat,
            past,
            weight,
            bias,
            y,
            None if residual is None else total,
            mean,
            rstd,
            flat.shape[0],
            flat.stride(0),
            0 if past is None else past.stride(0),
            eps,
            N=features,
            BLOCK=block,
            ROWS=rows,
            OFFSET=norm.offset,
            CENTRED=norm.centred,
            ROUND_FIRST=norm.round_first,
            num_warps=lanes(warps),
        )
    return y, total, mean, rstd


def backward(
    grad: torch.Tensor,
    grad_total: torch.Tensor | None,
    total: torch.Tensor,
    weight: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor,
    norm: Norm,
    sums: tuple[torch.dtype | None, torch.dtype | None],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Launch the backward pass.

    Args:
        grad: Gradient of y; it is not written to.
        grad_total: Gradient that reaches `total` past the norm.
        total: What was normalised.
        weight: As in the forward pass.
        mean: As the forward pass gave it.
        rstd: As the forward pass gave it.
        norm: Which norm.
        sums: Type of the gradients of weight and of bias; None = not wanted.

    Returns:
        Gradients of `total`, of weight and of bias.
    """
    flat, features = rows_of(total), total.shape[-1]
    dx = torch.empty(total.shape, dtype=total.dtype, device=total.device)
    wanted = [kind for kind in sums if kind is not None]
    if dx.numel() == 0:
        zeros = [None if kind is None else torch.zeros(features, dtype=kind, device=dx.device) for kind in sums]
        return dx, zeros[0], zeros[1]
    up, past = rows_of(grad), None if grad_total is None else rows_of(grad_total)
    block, rows, warps, ahead = tile(features, True, norm.centred)
    programs = min(triton.cdiv(flat.shape[0], rows), _processors(total.device) * (16 // warps))
    partial = torch.empty(len(wanted), programs, features, dtype=torch.float32, device=total.device)
    with torch.cuda.device_of(total):
        _backward[(programs,)](
            up,
            past,
            flat,
            weight,
            mean,
            rstd,
            dx,
            None if sums[0] is None else partial[0],
            None if sums[1] is None else partial[-1],
            flat.shape[0],
            up.stride(0),
            0 if past is None else past.stride(0),
            flat.stride(0),
            N=features,
            BLOCK=block,
            ROWS=rows,
            OFFSET=norm.offset,
            CENTRED=norm.centred,
            AHEAD=ahead,
            num_warps=lanes(warps),
        )
        found = iter(_summed(partial, wanted) if wanted else ())
    return dx, *(None if kind is None else next(found).to(kind) for kind in sums)  # type: ignore[return-value]


def _summed(partial: torch.Tensor, types: list[torch.dtype]) -> torch.Tensor:
    """Return the sum over programs, (matrices, N), rounded once where the matrices share a type."""
    matrices, programs, features = partial.shape
    type_ = types[0] if len(set(types)) == 1 else torch.float32
    out = torch.empty(matrices, features, dtype=type_, device=partial.device)
    _column_sums[(triton.cdiv(features, 32), matrices)](partial, out, programs, features, BLOCK_P=64, BLOCK_N=32)
    return out
