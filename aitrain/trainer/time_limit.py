"""The time limit of the Slurm job of a run, read from Slurm, so that a run saves even without a signal. No torch."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping

SMALLEST_RESERVE_S = 60.0
"""Seconds before the limit at which a run stops by itself: Slurm looks every 30 s, and a step must end."""

LARGEST_SHARE = 0.25
"""Largest share of a job's initial time that is reserved for saving."""

PATIENCE_S = 20.0


class TimeLimit:
    """The end of this job, and whether a run must stop now to be saved in time.

    Args:
        environment: Variables of the job.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._save_s = 0.0
        self.end = end_of_job(environment)
        self._left_at_start = 0.0 if self.end is None else max(0.0, self.end - time.time())

    @property
    def reserve_s(self) -> float:
        """Seconds before the end at which a run stops."""
        return min(SMALLEST_RESERVE_S + 2 * self._save_s, LARGEST_SHARE * self._left_at_start)

    def note_save(self, seconds: float) -> None:
        """Record how long a checkpoint takes.

        Args:
            seconds: The time.
        """
        self._save_s = max(self._save_s, seconds)

    def is_near(self) -> bool:
        """Return whether the run has to stop now; a limit that was changed meanwhile is read again."""
        if self.end is None or time.time() + self.reserve_s < self.end:
            return False
        self.end = end_of_job({key: value for key, value in self._environment.items() if key != "SLURM_JOB_END_TIME"})
        return self.end is not None and time.time() + self.reserve_s >= self.end


def end_of_job(environment: Mapping[str, str]) -> float | None:
    """Return when Slurm ends the job around this process, in seconds since 1970; `None` = no job, no limit, not known.

    Slurm 22.05 does not set it in the environment; scontrol is then used, if available (not in containers).

    Args:
        environment: Variables of the job.

    Source: https://slurm.schedmd.com/sbatch.html, `SLURM_JOB_END_TIME`.
    """
    if environment.get("SLURM_JOB_END_TIME", "").isdigit():
        return float(environment["SLURM_JOB_END_TIME"])
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        return None
    try:
        done = subprocess.run(
            ["scontrol", "show", "job", job], capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\bEndTime=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", done.stdout)
    return time.mktime(time.strptime(found.group(1), "%Y-%m-%dT%H:%M:%S")) if found else None
