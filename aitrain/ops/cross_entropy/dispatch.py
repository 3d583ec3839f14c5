"""The row passes of the device at hand: Triton kernels, or plain PyTorch."""

from __future__ import annotations

from types import ModuleType

import torch

from aitrain.ops.backend import use_kernels


def row_passes(tensor: torch.Tensor) -> ModuleType:
    """Return the module with `statistics`, `loss_and_gradient_` and `gradient_` for this tensor's device.

    Args:
        tensor: Logits, or what they are computed from. float64 has no kernel.
    """
    if tensor.dtype != torch.float64 and use_kernels(tensor):
        from aitrain.ops.cross_entropy import kernel

        return kernel
    from aitrain.ops.cross_entropy import rows

    return rows


def times_upstream_(gradient: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    """Multiply a finished gradient by the incoming one, in place; an incoming 1 costs no pass over the memory.

    Args:
        gradient: Any shape; overwritten.
        upstream: Scalar on the same device.

    Returns:
        `gradient`.
    """
    if gradient.dtype != torch.float64 and gradient.is_contiguous() and use_kernels(gradient):
        from aitrain.ops.cross_entropy import upstream as kernel

        return kernel.times_(gradient, upstream)
    if not upstream.is_cuda and float(upstream) == 1.0:
        return gradient
    return gradient.mul_(upstream)
