"""Times launches one by one, providers in rotating order, so that clocks and heat affect all of them equally."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

FEWEST_ROUNDS = 5
MOST_ROUNDS = 50
CACHE_BYTES = 256 << 20
"""Written between two launches: more than four times the L2 cache of an H200 (60 MB)."""

CYCLES_PER_S = 2.0e9
"""Upper end of what GPUs clock: how long `torch.cuda._sleep` holds the stream back is at least what was asked for."""

LONGEST_SLEEP_S = 0.02


@dataclass(frozen=True)
class Launch:
    """What is timed."""

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None
    """Done before each launch, outside the time; `run` gets what it returns."""


@dataclass
class Times:
    """Measurements of one provider."""

    seconds: list[float] = field(default_factory=list)
    """Per launch: on a GPU what passed on the device, with the launch itself hidden; on a CPU wall time."""

    host_s: float | None = None
    """On a GPU: time until the call returned, which is the least a step can take however fast the device is."""


def quantile(values: list[float], share: float) -> float:
    """Return a quantile by linear interpolation.

    Args:
        values: At least one.
        share: 0 to 1.
    """
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def interleave(launches: Mapping[str, Launch], device: torch.device, seconds: float) -> dict[str, Times]:
    """Time every launch once per round, each round beginning with another one.

    Args:
        launches: Provider -> launch.
        device: Where they run.
        seconds: When to stop; five rounds are run in any case, and at most fifty.
    """
    clock = _GpuClock(device) if device.type == "cuda" else _CpuClock()
    found = {name: Times(host_s=clock.warm_up(launch)) for name, launch in launches.items()}
    names = list(launches)
    end = time.monotonic() + seconds
    for number in range(MOST_ROUNDS):
        if number >= FEWEST_ROUNDS and time.monotonic() > end:
            break
        shift = number % len(names)
        order = names[shift:] + names[:shift]
        for name, spent in zip(order, clock.round([(launches[n], found[n]) for n in order]), strict=True):
            found[name].seconds.append(spent)
    return found


class _CpuClock:
    """Wall time; the caches are as the previous launch left them."""

    def warm_up(self, launch: Launch) -> None:
        for _ in range(2):
            launch.run(launch.prepare())

    def round(self, launches: list[tuple[Launch, Times]]) -> list[float]:
        spent = []
        for launch, _ in launches:
            state = launch.prepare()
            begin = time.perf_counter()
            result = launch.run(state)
            spent.append(time.perf_counter() - begin)
            del result
        return spent


class _GpuClock:
    """Events around each launch, after clearing the cache and a sleep that lets the host queue everything first."""

    def __init__(self, device: torch.device) -> None:
        self._filler = torch.empty(CACHE_BYTES // 4, dtype=torch.int32, device=device)

    def warm_up(self, launch: Launch) -> float:
        spent = []
        for _ in range(6):
            state = launch.prepare()
            torch.cuda.synchronize()
            begin = time.perf_counter()
            result = launch.run(state)
            spent.append(time.perf_counter() - begin)
            torch.cuda.synchronize()
            del result
        return median(spent[2:])

    def round(self, launches: list[tuple[Launch, Times]]) -> list[float]:
        pairs = []
        for launch, times in launches:
            state = launch.prepare()
            self._filler.zero_()
            hidden = min(1.5 * (times.host_s or 0.0) + 2e-5, LONGEST_SLEEP_S)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(int(hidden * CYCLES_PER_S))
            begin.record()
            result = launch.run(state)
            end.record()
            del result, state
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]
