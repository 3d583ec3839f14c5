"""Peak memory of this process, measured in the same way for every provider."""

from __future__ import annotations

import resource

import torch


def peak_memory_gb(device: str) -> float:
    """Return the most memory that was held at once, in GB (1e9 bytes).

    Args:
        device: `cuda` = what torch's allocator gave out; `cpu` = resident memory of the process.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB
