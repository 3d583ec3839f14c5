"""Restarts of a job by itself: counted, and given up when they bring the run no further. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from aitrain.dist.ranks import job_number
from aitrain.errors import GuardError
from aitrain.trainer.run_directory import RunDirectory

PROGRESS = ("checkpoint", "finished")


def note_launch(directory: RunDirectory, environment: Mapping[str, str], most: int) -> None:
    """Note that a job starts a run, or goes on with it, and refuse one restart too many without a new checkpoint.

    Only restarts that nobody asked for count: a requeued job, or the next one of a chain.

    Args:
        directory: The run.
        environment: Variables of the job.
        most: Restarts in a row without a new checkpoint that are allowed.

    Raises:
        GuardError: The run did not get on in any of them (exit code 4).
    """
    job = job_number(environment)
    if job is None:
        return
    automatic = int(environment.get("SLURM_RESTART_COUNT") or 0) > 0 or int(environment.get("AITRAIN_LINK") or 0) > 1
    without = _without_progress(directory) + 1 if automatic else 0
    if without > most:
        failures = directory.all_of("rank_failed", "failed", "waiting")
        last = failures[-1] if failures else {}
        why = last.get("reason") or last.get("error")
        raise GuardError(
            f"{directory.path} was restarted {most} times without a new checkpoint, so it is given up"
            + (f". The last failure: {why}" if why else "")
            + f". When the cause is mended, continue with: sbatch {directory.path}/job.sbatch"
        )
    directory.event("launched", job=job, automatic=automatic)


def _without_progress(directory: RunDirectory) -> int:
    """Return how many launches of jobs, after the one that somebody asked for, brought no checkpoint."""
    count = 0
    for event in directory.all_of("launched", *PROGRESS):
        if event["event"] in PROGRESS or not event["automatic"]:
            count = 0
        else:
            count += 1
    return count
