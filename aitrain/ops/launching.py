"""Shared by all kernel launches: rows that need no copy, and warps of the GPU at hand."""

from __future__ import annotations

import torch


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor as (rows, features) with neighbouring features side by side; a copy only where a view cannot be.

    Args:
        x: Shape (..., features).
    """
    flat = x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty(0, x.shape[-1])
    return flat if flat.stride(1) == 1 or flat.shape[1] == 1 else flat.contiguous()


def warps(of_32: int) -> int:
    """Return how many of this GPU's warps have the lanes of so many warps of 32: AMD's have 64.

    Args:
        of_32: Warps of 32 lanes.
    """
    return max(1, of_32 // 2) if torch.version.hip else of_32
