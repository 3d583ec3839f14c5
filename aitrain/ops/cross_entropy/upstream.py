"""A Triton kernel that multiplies a finished gradient by the incoming one; where that is 1, no memory is touched."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from aitrain.ops.launching import warps

BLOCK = 8192
"""Elements of one program."""


@triton.jit
def _times(gradient, upstream, count, BLOCK: tl.constexpr):
    factor = tl.load(upstream).to(tl.float32)
    # a loss that is differentiated directly has an upstream gradient of 1: then no element is even read
    if factor != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        scaled = tl.load(gradient + at, mask=inside).to(tl.float32) * factor
        tl.store(gradient + at, scaled.to(gradient.dtype.element_ty), mask=inside)


def times_(gradient: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    """Multiply a gradient by a scalar that stays on its device.

    Args:
        gradient: Contiguous, any shape; overwritten.
        upstream: Scalar on the same device.

    Returns:
        `gradient`.
    """
    count = gradient.numel()
    if count:
        with torch.cuda.device_of(gradient):
            _times[(triton.cdiv(count, BLOCK),)](gradient, upstream, count, BLOCK=BLOCK, num_warps=warps(8))
    return gradient
