"""Triton kernels of the gated linear units: three tensors forward, five backward, each touched once."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from aitrain.ops.glu.reference import ACTIVATIONS, halves
from aitrain.ops.launching import rows_of, warps

# M = rows (all leading dimensions), F = features
_TWICE_ROOT_2_PI = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi)
_ROOT_HALF = tl.constexpr(0.7071067811865476)
_DENSITY = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)
_CUBIC = tl.constexpr(0.044715)


@triton.jit
def _gated(g, ACTIVATION: tl.constexpr):
    """Return the share of g that passes: activation(g) = g * share."""
    if ACTIVATION == 0:
        return tl.sigmoid(g)
    elif ACTIVATION == 1:
        # (1 + tanh(z)) / 2 = sigmoid(2 z)
        return tl.sigmoid((g + g * g * g * _CUBIC) * _TWICE_ROOT_2_PI)
    else:
        return 0.5 + 0.5 * tl.erf(g * _ROOT_HALF)


@triton.jit
def _slope(g, share, ACTIVATION: tl.constexpr):
    """Return the derivative of the activation."""
    if ACTIVATION == 0:
        return share * (1.0 + g * (1.0 - share))
    elif ACTIVATION == 1:
        return share * (1.0 + g * (1.0 - share) * (1.0 + g * g * (3.0 * _CUBIC)) * _TWICE_ROOT_2_PI)
    else:
        return share + g * _DENSITY * tl.exp(-0.5 * g * g)


@triton.jit
def _forward(
    gate_ptr,
    up_ptr,
    out_ptr,
    gate_stride,
    up_stride,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    blocks: tl.constexpr = (F + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    col = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = col < F
    g = tl.load(gate_ptr + row * gate_stride + col, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up_ptr + row * up_stride + col, mask=inside, other=0.0).to(tl.float32)
    out = g * _gated(g, ACTIVATION) * u
    tl.store(out_ptr + row * F + col, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    grad_ptr,
    gate_ptr,
    up_ptr,
    dgate_ptr,
    dup_ptr,
    grad_stride,
    gate_stride,
    up_stride,
    out_stride,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    blocks: tl.constexpr = (F + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    col = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = col < F
    grad = tl.load(grad_ptr + row * grad_stride + col, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate_ptr + row * gate_stride + col, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up_ptr + row * up_stride + col, mask=inside, other=0.0).to(tl.float32)
    share = _gated(g, ACTIVATION)
    dgate = grad * u * _slope(g, share, ACTIVATION)
    dup = grad * g * share
    tl.store(dgate_ptr + row * out_stride + col, dgate.to(dgate_ptr.dtype.element_ty), mask=inside)
    tl.store(dup_ptr + row * out_stride + col, dup.to(dup_ptr.dtype.element_ty), mask=inside)


@cache
def block(features: int) -> int:
    """Return the features of one program: the most of which at most a fourteenth is padding.

    Args:
        features: Of one row.
    """
    for size in (2048, 1024, 512):
        if -features % size * 14 <= features:
            return size
    return min(512, max(16, triton.next_power_of_2(features)))


def forward(gate: torch.Tensor, up: torch.Tensor | None, activation: str) -> torch.Tensor:
    """Launch the forward pass.

    Args:
        gate: Shape (..., F), or (..., 2 F) with `up` in it.
        up: Shape (..., F), or None.
        activation: One of `ACTIVATIONS`.
    """
    left, right = halves(gate, up)
    out = torch.empty(left.shape, dtype=left.dtype, device=left.device)
    if out.numel() == 0:
        return out
    left, right = rows_of(left), rows_of(right)
    rows, features = left.shape
    size = block(features)
    with torch.cuda.device_of(left):
        _forward[(rows * triton.cdiv(features, size),)](
            left,
            right,
            out,
            left.stride(0),
            right.stride(0),
            F=features,
            BLOCK=size,
            ACTIVATION=ACTIVATIONS.index(activation),
            num_warps=warps(max(1, size // 512)),
        )
    return out


def backward(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor | None, activation: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Launch the backward pass; the gradient of a packed tensor is one packed tensor.

    Args:
        grad: Gradient of the output; it is not written to.
        gate: As in the forward pass.
        up: As in the forward pass.
        activation: As in the forward pass.
    """
    dgate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    dup = None if up is None else torch.empty_like(dgate)
    if dgate.numel() == 0:
        return dgate, dup
    left, right = (rows_of(part) for part in halves(gate, up))
    left_out, right_out = halves(dgate.view(-1, gate.shape[-1]), None if dup is None else dup.view(-1, gate.shape[-1]))
    above = rows_of(grad)
    rows, features = left.shape
    size = block(features)
    with torch.cuda.device_of(left):
        _backward[(rows * triton.cdiv(features, size),)](
            above,
            left,
            right,
            left_out,
            right_out,
            above.stride(0),
            left.stride(0),
            right.stride(0),
            left_out.stride(0),
            F=features,
            BLOCK=size,
            ACTIVATION=ACTIVATIONS.index(activation),
            num_warps=warps(max(1, size // 512)),
        )
    return dgate, dup
