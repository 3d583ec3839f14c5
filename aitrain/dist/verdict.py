"""Decides from the states of all ranks whether a run continues, is done, or has failed, and why. No torch."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aitrain.errors import EXIT_DATA, EXIT_DONE, EXIT_GUARD, EXIT_REQUEUE, EXIT_USER

SETTLE_S = 1.5
"""Seconds after a rank died in which others may report that they died before it."""

TOLD_S = 15.0
"""Seconds that the other ranks get to end by themselves when one has ended with a message for the user."""

STOPPED_S = 10.0
"""Seconds for which a process may be stopped (SIGSTOP) while its supervisor runs on."""

LOST_S = 30.0
"""Seconds without a report from a supervisor after which its node counts as lost."""

FIRST_CONTACT_S = 300.0
"""Seconds that the ranks get to start."""

TOLD = (EXIT_USER, EXIT_DATA, EXIT_GUARD)
"""Exit codes whose reason the rank has already reported to the user."""

BROKEN_HARDWARE = (
    "uncorrectable ECC error",
    "GPU is lost",
    "GPU has fallen off the bus",
    "NCCL error: remote process exited",
    "ncclSystemError",
    "ncclRemoteError",
    "devices are busy or unavailable",
    "HSA_STATUS_ERROR",
)
"""Messages of a rank that point to its machine: the run may continue elsewhere."""


@dataclass
class RankState:
    """What is known about one rank."""

    rank: int
    """Its number."""

    node: str = "?"
    """Name of its node."""

    doing: str = "starting"
    """Its last activity."""

    silent_s: float = 0.0
    """Seconds since it last made progress."""

    beats: int = 0
    """Number of progress reports."""

    stopped_s: float | None = None
    """Seconds since its process was stopped; `None` = it is not."""

    code: int | None = None
    """Its exit code, negative for a signal; `None` = it runs."""

    ended_s: float = 0.0
    """Seconds since it ended."""

    unheard_s: float = 0.0
    """Seconds since its supervisor was last heard."""

    is_lost: bool = False
    """Whether the connection to its supervisor broke unexpectedly."""

    tail: list[str] = field(default_factory=list)
    """Its last lines."""

    @property
    def place(self) -> str:
        """Rank and node, in readable form."""
        return f"rank {self.rank} on {self.node}"

    @property
    def is_bad(self) -> bool:
        """Whether it ended otherwise than done or saved, or is lost."""
        return (self.code is None and self.is_lost) or self.code not in (None, EXIT_DONE, EXIT_REQUEUE)


@dataclass(frozen=True)
class Verdict:
    """How a run ends on all ranks."""

    code: int
    """Exit code of every rank."""

    reason: str | None = None
    """What happened, in one sentence; `None` = nothing beyond what the ranks have reported."""

    rank: int | None = None
    """The rank concerned."""

    node: str | None = None
    """Its node, if that must not be used again."""

    tail: tuple[str, ...] = ()
    """The last lines of that rank."""


def failed(states: Sequence[RankState]) -> Verdict | None:
    """Return how a run ends whose ranks have ended or died, or `None` while that is not clear.

    Args:
        states: Every rank.
    """
    bad = [state for state in states if state.is_bad]
    if not bad:
        if any(state.code is None for state in states):
            return None
        return Verdict(EXIT_REQUEUE if any(state.code == EXIT_REQUEUE for state in states) else EXIT_DONE)
    everyone = all(state.code is not None or state.is_lost for state in states)
    first = min(bad, key=_guilt)
    patience = TOLD_S if first.code in TOLD else SETTLE_S
    if not everyone and max(state.ended_s for state in bad) < patience:
        return None
    return _of_failure(first)


def _guilt(state: RankState) -> tuple[int, float]:
    """Order ranks by how likely they are the cause: lost, killed, reported a fault, exception; then by time."""
    if state.code is None:
        kind = 0
    elif state.code < 0 and state.code != -signal.SIGTERM:
        kind = 1
    elif state.code in TOLD:
        kind = 2
    else:
        kind = 3
    return kind, -state.ended_s


def _of_failure(state: RankState) -> Verdict:
    code, tail = state.code, tuple(state.tail)
    if code is None:
        reason = f"{state.place} is lost: its node no longer responds (last seen at: {state.doing})"
        return Verdict(EXIT_REQUEUE, reason, state.rank, state.node, tail)
    if code in TOLD:
        return Verdict(code, None if state.rank == 0 else f"{state.place} ended the run", state.rank, None, tail)
    if code in (-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT):
        return Verdict(128 - code if code < 0 else code)
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        more = ", probably by the kernel, because memory ran out" if -code == signal.SIGKILL else ""
        reason = f"{state.place} was killed by signal {-code} ({name}{more}) at: {state.doing}"
        return Verdict(EXIT_REQUEUE, reason, state.rank, state.node, tail)
    if any(words in line for words in BROKEN_HARDWARE for line in tail):
        reason = f"{state.place} reports a broken device or network at: {state.doing}"
        return Verdict(EXIT_REQUEUE, reason, state.rank, state.node, tail)
    return Verdict(code, f"{state.place} ended with exit code {code} at: {state.doing}", state.rank, None, tail)


def stuck(states: Sequence[RankState], hang_s: float | None) -> str | None:
    """Return why a run makes no progress although no rank died, or `None` if it does.

    A rank that waits for others is silent, so only a silence of all counts.

    Args:
        states: Every rank.
        hang_s: Seconds without progress on any rank that are too many; `None` = not watched.
    """
    running = [state for state in states if state.code is None]
    if any(state.stopped_s is not None and state.stopped_s > STOPPED_S for state in running):
        return "stopped"
    # that a rank ends is progress too
    silence = min((state.silent_s if state.code is None else state.ended_s for state in states), default=0.0)
    return "silent" if hang_s is not None and silence > hang_s else None


def of_stuck(states: Sequence[RankState], why: str, stacks: Mapping[int, Sequence[str]]) -> Verdict:
    """Return the verdict on a run without progress, after every rank was asked for its stack trace.

    Args:
        states: Every rank.
        why: What `stuck` said.
        stacks: Last lines of each rank, its stack among them.
    """
    running = [state for state in states if state.code is None]
    stopped = [state for state in running if state.stopped_s is not None]
    if why == "stopped" and stopped:
        one = max(stopped, key=lambda state: state.stopped_s or 0.0)
        reason = f"{one.place} was stopped (SIGSTOP) for {one.stopped_s:.0f} s at: {one.doing}"
        return Verdict(EXIT_REQUEUE, reason, one.rank, one.node, tuple(stacks.get(one.rank, ())))
    silence = min(state.silent_s for state in running)
    last = min(running, key=lambda state: (state.beats, state.rank))
    behind = [state for state in running if state.beats == last.beats]
    if len(behind) < len(running) or len(running) == 1:
        reason = f"no rank has made progress for {silence:.0f} s; {last.place} is behind the others, at: {last.doing}"
        if len(running) == 1:
            reason = f"{last.place} has made no progress for {silence:.0f} s, at: {last.doing}"
        return Verdict(EXIT_REQUEUE, reason, last.rank, last.node, tuple(stacks.get(last.rank, ())))
    waiting = {state.rank for state in running if _waits(stacks.get(state.rank, ()))}
    alone = [state for state in running if state.rank not in waiting]
    if len(alone) == 1:
        one = alone[0]
        reason = f"no rank has made progress for {silence:.0f} s; all wait for {one.place}, at: {one.doing}"
        return Verdict(EXIT_REQUEUE, reason, one.rank, one.node, tuple(stacks.get(one.rank, ())))
    reason = f"no rank has made progress for {silence:.0f} s, at: {last.doing}; stack traces in logs/rank-*.log"
    return Verdict(EXIT_REQUEUE, reason, None, None, tuple(stacks.get(0, ())))


def _waits(stack: Sequence[str]) -> bool:
    """Return whether a stack shows a rank that waits for the others."""
    words = ("distributed_c10d.py", "torch/autograd/graph.py", "all_reduce", "barrier")
    return any(word in line for line in stack for word in words)
