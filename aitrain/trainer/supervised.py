"""Runs a rank under srun as the child of a supervisor, whose findings are kept in the run directory. No torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from aitrain.dist import early_signals, supervisor
from aitrain.dist.ranks import detect, job_number
from aitrain.dist.supervisor import Supervisor
from aitrain.dist.verdict import Verdict
from aitrain.errors import EXIT_REQUEUE, AitrainError
from aitrain.io import append_line, write_text, writing
from aitrain.trainer.restarts import RUNNING
from aitrain.trainer.run_directory import RunDirectory

EXCLUDED = "excluded-nodes"
"""File in `logs/` of a run: names of the nodes that its job script must avoid from now on, one per line."""


def is_wanted() -> bool:
    """Return whether this process is a rank under srun that has no supervisor yet."""
    return supervisor.is_wanted(os.environ)


def supervise(words: Sequence[str]) -> int:
    """Run a command of aitrain as one rank, watched.

    Args:
        words: The command and its words, as after `aitrain`.

    Returns:
        The exit code, the same on every rank: that of the command, or 75 if a rank died or hung and the run can go on
        from its newest checkpoint.

    Raises:
        LaunchError: The ranks contradict each other, or have no port to connect to.
    """
    early_signals.hold()
    ranks = detect()
    return Supervisor(ranks, [sys.executable, "-m", "aitrain", *words], note_end, touch).run()


def touch(run: Path) -> None:
    """Keep updating the mark that shows other jobs that this one trains the run.

    Args:
        run: The run directory.
    """
    with suppress(OSError):  # the run itself says when its disk is gone
        os.utime(run / "logs" / RUNNING)


def note_end(verdict: Verdict, run: Path | None) -> None:
    """Record how a run ended for its job script; a failure also goes to its events, and its node to the list to avoid.

    Args:
        verdict: How.
        run: The run directory; `None` = not known yet.
    """
    goes_on = verdict.code == EXIT_REQUEUE
    job = job_number(os.environ)
    if verdict.reason is not None:
        more = "; the run can continue from its newest checkpoint" if goes_on else ""
        print(f"All ranks were ended{more}.", file=sys.stderr)
    if run is None:
        return
    try:
        with writing(str(run / "logs"), "free space there"):
            if verdict.reason is not None:
                RunDirectory(run).event(
                    "rank_failed", rank=verdict.rank, node=verdict.node, reason=verdict.reason, job=job
                )
                if goes_on and verdict.node is not None:
                    append_line(run / "logs" / EXCLUDED, verdict.node)
            (run / "logs" / RUNNING).unlink(missing_ok=True)
            if job is not None:
                write_text(run / "logs" / "exit-code", f"{verdict.code}\n")
    except AitrainError as error:  # the job ends anyway, and says why
        print(error, file=sys.stderr)
