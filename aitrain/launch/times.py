"""Time limits as Slurm writes and reads them, and how early before its limit a run must be signalled to save."""

from __future__ import annotations

import math
import re

from aitrain.errors import RecipeError

DEFAULT_HOURS = 24.0
"""Time limit of a job that names none, where the partition does not allow less."""

SMALLEST_SIGNAL_S = 300
"""Shortest notice before the time limit: Slurm looks every 30 s, a step must end, and a save must be durable."""

STEP_S = 180
"""Seconds of the notice that are for the end of a step and for Slurm's own delay."""

BYTES_PER_WEIGHT = 16
"""Assumed size of a checkpoint per trained weight: 12 for it and AdamW's two moments in fp32, 4 in reserve."""

WRITE_BYTES_PER_S = 1e9
"""Rate at which a checkpoint is assumed to be written: not measured, so `cluster.signal_s` overrides the result."""

_SLURM_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


def minutes(text: str) -> int:
    """Return a time limit in minutes, rounded up.

    Args:
        text: `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, `days-hours:minutes` or
            `days-hours:minutes:seconds`.

    Raises:
        RecipeError: The text is none of these.

    Source: https://slurm.schedmd.com/sbatch.html, `--time`.
    """
    found = _SLURM_TIME.fullmatch(text.strip())
    if found is None:
        raise RecipeError(f"--time={text} is not a time limit: write hours:minutes:seconds, for instance 04:00:00")
    days, *clock = (None if part is None else int(part) for part in found.groups())
    first, second, third = clock
    assert first is not None, "the pattern has it"
    if days is not None:
        seconds = ((days * 24 + first) * 60 + (second or 0)) * 60 + (third or 0)
    elif third is not None:
        seconds = (first * 60 + (second or 0)) * 60 + third
    else:
        seconds = first * 60 + (second or 0)
    if seconds < 1:
        raise RecipeError(f"--time={text} is not above 0: write hours:minutes:seconds, for instance 04:00:00")
    return -(-seconds // 60)


def slurm_time(minutes: int) -> str:
    """Return a time limit as Slurm writes it, `HH:MM:00` or `D-HH:MM:00`.

    Args:
        minutes: The limit.
    """
    days, rest = divmod(minutes, 24 * 60)
    clock = f"{rest // 60:02d}:{rest % 60:02d}:00"
    return f"{days}-{clock}" if days else clock


def default_minutes(max_hours: float | None) -> int:
    """Return the time limit of a job that names none, in minutes.

    Args:
        max_hours: What the partition allows; `None` = not known.
    """
    return int(60 * min(DEFAULT_HOURS, max_hours or DEFAULT_HOURS))


def notice_s(trained_weights: int | None) -> int:
    """Return how early a run must be signalled to stop, in whole minutes as seconds: an estimate.

    Three minutes for the step and Slurm's delay, and `16 bytes x weights / 1 GB/s` for the save; at least five minutes.

    Args:
        trained_weights: Weights that are trained; `None` = not known.
    """
    write = (trained_weights or 0) * BYTES_PER_WEIGHT / WRITE_BYTES_PER_S
    return max(SMALLEST_SIGNAL_S, 60 * math.ceil((STEP_S + write) / 60))
