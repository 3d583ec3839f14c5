"""Automatic restarts of a job: counted, and ended when they make no progress. No torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from aitrain.dist import heartbeat
from aitrain.dist.ranks import job_number
from aitrain.errors import GuardError, LaunchError
from aitrain.io import write_text
from aitrain.trainer.run_directory import RunDirectory

PROGRESS = ("checkpoint", "finished")
RUNNING = "running"
"""File in `logs/` of a run that the job training it keeps updating, and removes at its end."""

FRESH_S = 5.0
"""Seconds between two touches of that file."""

STALE_S = 25.0
"""Seconds without a touch after which the job counts as gone."""

ENDING_S = 120.0
"""Seconds to wait for another job to end, for instance after `aitrain stop`."""


def claim(directory: RunDirectory, environment: Mapping[str, str]) -> None:
    """Make sure that no other job trains this run, so that two never write to it; wait for one that is ending.

    Args:
        directory: The run.
        environment: Variables of the job.

    Raises:
        LaunchError: Another job trains it.
    """
    job = job_number(environment)
    if job is None:
        return
    own = f"{job} {environment.get('SLURM_RESTART_COUNT') or 0}"
    mark = directory.logs / RUNNING
    began = seen = time.monotonic()
    touched = _touched(mark)
    while touched is not None and _holder(mark) != own:
        if (now := _touched(mark)) != touched:
            touched, seen = now, time.monotonic()
        if time.monotonic() - seen > STALE_S:
            break
        if time.monotonic() - began > ENDING_S:
            raise LaunchError(
                f"{directory.path} is being trained by job {_holder(mark).split()[0]}: wait until it has ended, or "
                f"stop it with `aitrain stop {directory.path}`"
            )
        time.sleep(0.5)
    directory.logs.mkdir(exist_ok=True)
    write_text(mark, own)
    heartbeat.tell(run=str(directory.path))  # the supervisor removes it, whatever happens from here on


def _touched(mark: Path) -> int | None:
    try:
        return mark.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _holder(mark: Path) -> str:
    try:
        return mark.read_text() or "?"
    except FileNotFoundError:
        return "?"


def note_launch(directory: RunDirectory, environment: Mapping[str, str], most: int) -> None:
    """Record that a job starts or continues a run, and refuse too many restarts without a new checkpoint.

    Only automatic restarts count: a requeued job, or the next one of a chain.

    Args:
        directory: The run.
        environment: Variables of the job.
        most: Restarts in a row without a new checkpoint that are allowed.

    Raises:
        GuardError: The run made no progress in any of them (exit code 4).
        LaunchError: Another job trains the run.
    """
    job = job_number(environment)
    if job is None:
        return
    claim(directory, environment)
    automatic = int(environment.get("SLURM_RESTART_COUNT") or 0) > 0 or int(environment.get("AITRAIN_LINK") or 0) > 1
    without = _without_progress(directory) + 1 if automatic else 0
    if without > most:
        failures = directory.all_of("rank_failed", "failed", "waiting")
        last = failures[-1] if failures else {}
        why = last.get("reason") or last.get("error")
        raise GuardError(
            f"{directory.path} was restarted {most} times without a new checkpoint, so no further restart is tried"
            + (f". The last failure: {why}" if why else "")
            + f". When the cause is fixed, continue with: sbatch {directory.path}/job.sbatch"
        )
    directory.event("launched", job=job, automatic=automatic)


def _without_progress(directory: RunDirectory) -> int:
    """Return how many launches of jobs, after the last manual one, brought no checkpoint."""
    count = 0
    for event in directory.all_of("launched", *PROGRESS):
        if event["event"] in PROGRESS or not event["automatic"]:
            count = 0
        else:
            count += 1
    return count
