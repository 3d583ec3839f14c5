"""Watches queued and running runs: their state from their files and Slurm's queue, their logs, and how to stop them."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aitrain.config.run import SWEEP
from aitrain.errors import AitrainError, LaunchError
from aitrain.io import write_text, writing
from aitrain.io.table import table
from aitrain.launch.slurm import QueuedJob, Slurm
from aitrain.report.runs import RunSummary, differences, runs, summary

STOP_FILE = "stop"
"""File in `logs/` of a run that tells its job script not to continue after the next save."""

LAST_LINES = 20
LOOK_S = 0.5
QUIET_S = 10.0
"""Seconds without a new line after which a followed log checks whether its writer is still alive."""


@dataclass
class Queue:
    """What Slurm says about the jobs of some runs."""

    jobs: dict[str, QueuedJob] = field(default_factory=dict)
    """Jobs that wait or run, by number."""

    asked: set[str | None] = field(default_factory=set)
    """Clusters whose queue was read."""

    silent: list[str] = field(default_factory=list)
    """Why a queue could not be read."""

    def job_of(self, run: RunSummary) -> QueuedJob | None:
        """Return the job of a run: the one it knows of, or one whose script was submitted by hand since.

        Args:
            run: The run.
        """
        script = str((run.path / "job.sbatch").absolute())
        by_hand = (job for job in self.jobs.values() if job.script == script)
        return self.jobs.get(run.job or "") or next(by_hand, None)


def read_queue(found: Sequence[RunSummary]) -> Queue:
    """Ask Slurm about the jobs of runs that are not over.

    Args:
        found: The runs.
    """
    queue = Queue()
    for cluster in dict.fromkeys(run.cluster for run in found if run.job is not None and not run.is_over):
        try:
            queue.jobs |= {job.number: job for job in Slurm(cluster).jobs()}
            queue.asked.add(cluster)
        except LaunchError as error:
            queue.silent.append(str(error))
    return queue


def state_of(run: RunSummary, queue: Queue) -> str:
    """Return the state of a run in a few words.

    Args:
        run: The run.
        queue: What Slurm says.
    """
    job = queue.job_of(run)
    if job is None:
        unknown = run.job is None or run.is_over or run.cluster not in queue.asked
        alive = run.state.startswith(("running", "starting", "submitted"))
        return run.state if unknown or not alive else f"interrupted (job {run.job} is no longer in the queue)"
    if job.state == "PENDING":
        return f"waiting in the queue ({job.reason})"
    if job.state == "RUNNING":
        return f"running on {job.nodes}"
    return job.state.lower()


def runs_text(folder: Path) -> str:
    """Return the runs in a folder as a table; those of a sweep with the words in which they differ.

    Args:
        folder: Folder of run directories.

    Raises:
        AitrainError: The folder does not exist.
    """
    found = runs(folder)
    if not found:
        return f"no runs in {folder}"
    queue = read_queue(found)
    words = _words_of_sweep(folder)
    told = differences(found) if len(found) > 1 else {}
    rows = []
    if words:
        found = by_success(found)
    for number, run in enumerate(found):
        loss, best = ("-" if value is None else f"{value:.4f}" for value in (run.loss, run.best_validation))
        is_winner = bool(words) and number == 0 and run.best_validation is not None
        differs = words.get(run.path.name) or told.get(run.path, "")
        metric = "" if run.best_validation is None else run.metric.replace("_", " ")
        name = f"{run.path}{' (best)' if is_winner else ''}"
        rows.append(
            [name, str(run.steps), loss, f"{best} {metric}".strip(), run.job or "-", state_of(run, queue), differs]
        )
    head = ["run", "steps", "loss", "best held-out", "job", "state", "differs in"]
    lines = [table(head, rows)]
    return "\n".join([*lines, *(f"The queue could not be read: {why}" for why in queue.silent)])


def by_success(found: Sequence[RunSummary]) -> list[RunSummary]:
    """Return runs in the order of their held-out metric, the best first; those without one come last.

    Args:
        found: The runs.
    """

    def rank(run: RunSummary) -> tuple[bool, float]:
        value = run.best_validation
        return value is None, 0.0 if value is None else -value if run.greater_is_better else value

    return sorted(found, key=rank)


def _words_of_sweep(folder: Path) -> dict[str, str]:
    """Return what the runs of a sweep differ in, by the name of their folder; empty if there is no sweep."""
    try:
        words = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(number): str(text) for number, text in enumerate(words)}


def status_text(path: Path) -> str:
    """Return everything that is known about one run, in readable form.

    Args:
        path: Run directory.
    """
    run = summary(path)
    queue = read_queue([run])
    lines = [f"{path}: {state_of(run, queue)}"]
    job = queue.job_of(run)
    if job is not None:
        lines.append(_queue_line(run, job))
    elif run.job is not None:
        lines.append(f"  job         {run.job} on {run.cluster or 'Slurm'}")
    of = f" of {run.total_steps}" if run.total_steps else ""
    loss = "" if run.loss is None else f", loss {run.loss:.4f}"
    speed = "" if run.speed is None else f", {run.speed[0]:,.0f} {run.speed[1]}/s"
    lines.append(f"  step        {run.steps}{of}{loss}{speed}")
    if job is not None and job.state == "RUNNING" and run.total_steps and run.step_time_s:
        left = (run.total_steps - run.steps) * run.step_time_s
        lines.append(f"  left        about {_duration(left)} of training, {job.time_left} until the time limit")
    lines.append(f"  checkpoint  {'none yet' if run.checkpoint is None else f'step {run.checkpoint}'}")
    if run.restarts:
        lines.append(f"  restarts    {run.restarts}")
    if run.trouble:
        lines.append(f"  trouble     {run.trouble}")
    log = _log(path, None)
    if log is not None:
        lines.append(f"  log         {log}")
    if job is None and not run.is_over and (path / "job.sbatch").is_file() and not queue.silent:
        lines.append(f"  continue    sbatch {path}/job.sbatch")
    return "\n".join([*lines, *(f"The queue could not be read: {why}" for why in queue.silent)])


def _queue_line(run: RunSummary, job: QueuedJob) -> str:
    if job.state != "PENDING":
        return f"  job         {job.number} on {job.nodes}, {job.time_left} left"
    place, waiting = Slurm(run.cluster).place_in_queue(job)
    start = "" if job.starts in ("N/A", "") else f", expected to start at {job.starts}"
    return f"  job         {job.number}, number {place} of {waiting} waiting in partition {job.partition}{start}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _log(path: Path, rank: int | None) -> Path | None:
    """Return the log of a rank; for rank 0, that of the newest job where there is one."""
    jobs = sorted((path / "logs").glob("slurm-*.out"), key=lambda file: file.stat().st_mtime)
    if rank is None and jobs:
        return jobs[-1]
    file = path / "logs" / f"rank-{rank or 0}.log"
    return file if file.is_file() else None


def show_log(path: Path, rank: int | None, follow: bool) -> None:
    """Print the log of a run.

    Args:
        path: Run directory.
        rank: Which rank; `None` = what the job printed, or rank 0.
        follow: Print the last lines, then new ones until the run is over.

    Raises:
        AitrainError: There is none yet.
    """
    file = _log(path, rank)
    while file is None and follow:
        time.sleep(LOOK_S)
        file = _log(path, rank)
    if file is None:
        there = sorted(int(log.stem.split("-")[1]) for log in (path / "logs").glob("rank-*.log"))
        which = f": there are logs of ranks {there[0]} to {there[-1]}" if there else ": the run has not started yet"
        raise AitrainError(f"{path} has no log{'' if rank is None else f' of rank {rank}'}{which}")
    with open(file, encoding="utf-8", errors="replace") as log:
        text = log.read()
        sys.stdout.write("".join(text.splitlines(keepends=True)[-LAST_LINES:]) if follow else text)
        sys.stdout.flush()
        idle = 0.0
        while follow:
            over = summary(path).is_over or (idle > QUIET_S and _has_ended(path))  # asked before the last read
            if added := log.read():
                sys.stdout.write(added)
                sys.stdout.flush()
                idle = 0.0
            elif over:
                return
            elif idle > QUIET_S:
                idle = 0.0
            time.sleep(LOOK_S)
            idle += LOOK_S


def _has_ended(path: Path) -> bool:
    """Return whether a run is over: no process trains it and no job is queued for it."""
    run = summary(path)
    queue = read_queue([run])
    if run.job is None or run.cluster not in queue.asked:
        return not run.state.startswith(("running", "starting", "submitted"))
    return queue.job_of(run) is None


def stop(path: Path, now: bool) -> str:
    """Stop a run: it saves a checkpoint and is not requeued. `aitrain resume` or its job script continues it.

    Args:
        path: Run directory.
        now: End it immediately, without saving.

    Returns:
        What was done, for the user.

    Raises:
        AitrainError: It does not run, or cannot be reached from here.
    """
    run = summary(path)
    if run.is_over:
        raise AitrainError(f"{path} is finished: there is nothing to stop")
    slurm = Slurm(run.cluster)
    if run.job is not None:
        job = Queue({job.number: job for job in slurm.jobs()}).job_of(run)
        if job is None:
            raise AitrainError(f"{path} is not in the queue (its last job was {run.job}): there is nothing to stop")
        with writing(str(path / "logs"), "free space there"):
            write_text(path / "logs" / STOP_FILE, "")
        if now or job.state == "PENDING":
            slurm.cancel(job.number)
            return f"Cancelled job {job.number}. Continue with: sbatch {path}/job.sbatch"
        slurm.cancel(job.number, ["--signal=USR1"])
        return (
            f"Asked job {job.number} to save a checkpoint and stop after the current step: `aitrain status {path}` "
            f"shows when it has done so. Continue with: sbatch {path}/job.sbatch"
        )
    return _stop_here(run, now)


def _stop_here(run: RunSummary, now: bool) -> str:
    """Stop a run that was started without a job, through its process on this machine."""
    if run.pid is None or not run.state.startswith("running"):
        raise AitrainError(f"{run.path} is not running ({run.state}): there is nothing to stop")
    if run.host != socket.gethostname():
        raise AitrainError(f"{run.path} runs on {run.host}: stop it there")
    command = Path(f"/proc/{run.pid}/cmdline")
    if not command.is_file() or b"aitrain" not in command.read_bytes():
        raise AitrainError(f"{run.path} is no longer running: there is nothing to stop")
    os.kill(run.pid, signal.SIGKILL if now else signal.SIGTERM)
    done = "Killed it" if now else "Asked it to save a checkpoint and stop after the current step"
    return f"{done}. Continue with: aitrain resume {run.path}"
