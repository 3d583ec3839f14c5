"""The interface to Slurm: sbatch, squeue, scontrol and scancel, and their output as values."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aitrain.errors import LaunchError
from aitrain.launch.local_slurm import running_site

LOCAL = "local_slurm"
"""Name of the profile of a Slurm on this machine."""

PATIENCE_S = 60.0
_SEPARATOR = "\x1f"


@dataclass(frozen=True)
class QueuedJob:
    """A queued or running job."""

    number: str
    """Job id; `JOB_INDEX` in an array."""

    state: str
    """`PENDING`, `RUNNING`, ..."""

    reason: str
    """Why it is pending."""

    starts: str
    """When it began, or when Slurm expects to start it; `N/A` = not known."""

    time_left: str
    """Time until its limit."""

    nodes: str
    """Nodes that it runs on."""

    partition: str
    """Partition."""

    priority: int
    """Priority."""

    script: str = ""
    """Path of its script, as submitted."""


class Slurm:
    """Slurm, as this user sees it from here.

    Args:
        cluster: Name of the profile; for a Slurm on this machine its configuration is found automatically.
    """

    def __init__(self, cluster: str | None = None) -> None:
        # variables of sbatch would win over the lines of a script: it sees none of them
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SBATCH_")}
        self.site = running_site() if cluster == LOCAL else None
        if self.site is not None:
            self.environment.setdefault("SLURM_CONF", str(self.site.configuration))

    @property
    def is_here(self) -> bool:
        """Whether Slurm's commands are installed here."""
        return shutil.which("sbatch") is not None

    def run(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands.

        Args:
            words: The command.

        Raises:
            LaunchError: It is not installed, or does not answer.
        """
        try:
            return subprocess.run(
                list(words), capture_output=True, text=True, check=False, env=self.environment, timeout=PATIENCE_S
            )
        except FileNotFoundError:
            raise LaunchError(f"{words[0]} is not found here: run this on a login node of the cluster") from None
        except subprocess.TimeoutExpired:
            raise LaunchError(f"{words[0]} did not answer within {PATIENCE_S:.0f} s: try again later") from None

    def submit(self, script: Path, options: Sequence[str] = ()) -> str:
        """Submit a script and return the job id.

        Args:
            script: The script.
            options: More words for sbatch; they override the lines of the script.

        Raises:
            LaunchError: Slurm refuses it.

        Source: https://slurm.schedmd.com/sbatch.html, "INPUT ENVIRONMENT VARIABLES".
        """
        done = self.run(["sbatch", "--parsable", *options, str(script)])
        number = done.stdout.strip().split(";")[0]
        if done.returncode or not number.isdigit():
            raise LaunchError(f"sbatch refused the job: {said(done)}")
        return number

    def jobs(self, numbers: Sequence[str] | None = None) -> list[QueuedJob]:
        """Return the jobs of this user that wait or run.

        Args:
            numbers: Job ids to keep; those of an array keep all of its tasks. All jobs when absent.

        Raises:
            LaunchError: Slurm does not answer.
        """
        columns = _SEPARATOR.join(("%i", "%T", "%r", "%S", "%L", "%N", "%P", "%Q", "%o"))
        done = self.run(["squeue", "--noheader", "--me", "--array", "-o", columns])
        if done.returncode:
            raise LaunchError(f"squeue failed: {said(done)}")
        rows = [line.split(_SEPARATOR) for line in done.stdout.splitlines() if line.strip()]
        found = [
            QueuedJob(
                number=row[0].strip(),
                state=row[1].strip(),
                reason=row[2].strip(),
                starts=row[3].strip(),
                time_left=row[4].strip(),
                nodes=row[5].strip(),
                partition=row[6].strip(),
                priority=int(row[7].strip() or 0),
                script=row[8].strip(),
            )
            for row in rows
        ]
        return [job for job in found if numbers is None or {job.number, job.number.split("_")[0]} & set(numbers)]

    def place_in_queue(self, job: QueuedJob) -> tuple[int, int]:
        """Return the place of a waiting job among those of its partition, by priority, and how many wait there.

        Args:
            job: A job that waits.

        Raises:
            LaunchError: Slurm does not answer.
        """
        words = ["squeue", "--noheader", "--states=PENDING", f"--partition={job.partition}", "-o", "%Q"]
        done = self.run(words)
        if done.returncode:
            raise LaunchError(f"squeue failed: {said(done)}")
        others = [int(word) for word in done.stdout.split()]
        return 1 + sum(other > job.priority for other in others), len(others)

    def cancel(self, number: str, options: Sequence[str] = ()) -> None:
        """Cancel a job, or send it a signal.

        Args:
            number: Job id.
            options: More words for scancel.

        Raises:
            LaunchError: Slurm refuses it.
        """
        done = self.run(["scancel", *options, number])
        if done.returncode:
            raise LaunchError(f"scancel {number} failed: {said(done)}")


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return the output of a Slurm command on one line.

    Args:
        done: The command, which has ended.
    """
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    lines = [line for line in lines if ": fatal: " in line] or lines  # what went before it says the same in detail
    text = " ".join(re.sub(r"^(sbatch|squeue|scancel|sinfo|sacctmgr): ", "", line) for line in lines)
    return text or f"exit code {done.returncode}"
