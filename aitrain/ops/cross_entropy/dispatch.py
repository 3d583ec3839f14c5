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
