"""Peak memory of one call, over what was there before: from torch's allocators, on the GPU and on the CPU."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import torch


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Return how much more memory a call holds at its worst than before it; what it returns counts.

    Garbage is collected first: what an earlier call left in reference cycles would be freed at any moment of this one,
    and would be taken off its peak.

    Args:
        run: The call.
        device: Where it allocates.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del result
        return peak
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints two lines each time
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
        result = run()
    del result
    held = peak = 0
    memory = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(memory, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
