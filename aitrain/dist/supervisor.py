"""Runs a rank as a child and watches it, so that a rank that dies or hangs does not leave the others waiting. No
torch.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from aitrain.dist import early_signals
from aitrain.dist.lifeline import Hub, Spoke
from aitrain.dist.rank_process import RankProcess
from aitrain.dist.ranks import Ranks
from aitrain.dist.verdict import STOPPED_S, RankState, Verdict, failed, of_stuck, stuck
from aitrain.errors import EXIT_REQUEUE, LaunchError

VARIABLE = "AITRAIN_SUPERVISED"
"""Set in the environment of a rank that has a supervisor."""

TICK_S = 0.2
CALL_S = 5.0
STACK_S = 2.0
"""Seconds that ranks get to write their stacks."""

PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Return whether a process is a rank under srun that has no supervisor yet; torchrun watches its ranks itself.

    Args:
        environment: Its variables.
    """
    by_srun = "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment
    return by_srun and VARIABLE not in environment and "RANK" not in environment


def node_name(environment: Mapping[str, str]) -> str:
    """Return this node's name, as Slurm knows it.

    Args:
        environment: Variables.
    """
    return environment.get("SLURMD_NODENAME") or socket.gethostname().split(".")[0]


class Supervisor:
    """Starts one rank and decides together with the other supervisors how the run ends.

    Args:
        ranks: This rank's place.
        command: Program and arguments of the rank.
        on_end: Called on rank 0 with the verdict and the run directory, if that is known.
        while_running: Called on rank 0 with the run directory every few seconds.

    Raises:
        LaunchError: The port of the supervisors is in use.
    """

    def __init__(
        self,
        ranks: Ranks,
        command: Sequence[str],
        on_end: Callable[[Verdict, Path | None], None],
        while_running: Callable[[Path], None] = lambda _: None,
    ) -> None:
        self.ranks = ranks
        self._on_end = on_end
        self._while_running = while_running
        self._called_at = 0.0
        env = dict(os.environ)
        step = "/".join(env.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))
        self._hub: Hub | None = None
        self._spoke: Spoke | None = None
        if ranks.is_first:
            try:
                self._hub = Hub(ranks.port + 1, ranks.world, step)
            except OSError as error:
                raise LaunchError(
                    f"Port {ranks.port + 1} of {node_name(env)} is in use ({error.strerror}), but this run needs "
                    "it: set MASTER_PORT so that this port and the next one are free"
                ) from error
        else:
            self._spoke = Spoke(ranks.address, ranks.port + 1, step)
        self._node = node_name(env)
        self._ended_at = 0.0
        self._told: Verdict | None = None
        self._dump_asked = False
        self._signalled: dict[int, float] = {}
        self.child = RankProcess(command, {**env, VARIABLE: "1"}, ranks.rank)

    def run(self) -> int:
        """Watch until the run ends on all ranks.

        Returns:
            The exit code, the same on every rank.
        """
        before = {number: signal.signal(number, self._pass_on) for number in PASSED_ON}
        if early_signals.received():
            self.child.send(signal.SIGUSR1)
        last = time.monotonic()
        try:
            while True:
                self.child.poll(TICK_S)
                pause = time.monotonic() - last - TICK_S
                last = time.monotonic()
                if pause > STOPPED_S:
                    self._forgive(pause)
                verdict = self._decide() if self._hub is not None else self._report()
                if verdict is not None:
                    return self._end(verdict)
        finally:
            self.child.kill()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        # Slurm may signal every process of the step, and a second SIGINT stops immediately: pass on only a real one
        now = time.monotonic()
        if number != signal.SIGINT or now - self._signalled.get(number, 0.0) > 1.0:
            self.child.send(number)
        self._signalled[number] = now

    def _forgive(self, pause: float) -> None:
        self.child.beat_at += pause
        if self.child.stopped_at is not None:
            self.child.stopped_at += pause
        for end in (self._hub, self._spoke):
            if end is not None:
                end.forgive(pause)

    def state(self) -> RankState:
        """Return what is known about this rank."""
        child, now = self.child, time.monotonic()
        if child.code is not None and not self._ended_at:
            self._ended_at = now
        return RankState(
            rank=self.ranks.rank,
            node=self._node,
            doing=child.doing,
            silent_s=now - child.beat_at,
            beats=child.beats,
            stopped_s=None if child.stopped_at is None else now - child.stopped_at,
            code=child.code,
            ended_s=now - self._ended_at if self._ended_at else 0.0,
            tail=list(child.tail) if child.code is not None or self._dump_asked else [],
        )

    def _report(self) -> Verdict | None:
        """Report to rank 0, and return its verdict once there is one."""
        assert self._spoke is not None
        is_there = self._spoke.exchange(self.state(), self._answer)
        if self._told is None and not is_there:
            reason = "rank 0 is lost: its node no longer responds"
            return Verdict(EXIT_REQUEUE, reason, 0)
        return self._told

    def _answer(self, message: dict[str, Any]) -> None:
        if message.get("dump") and not self._dump_asked:
            self._dump_asked = True
            self.child.ask_for_stack()
        if isinstance(end := message.get("end"), dict):
            self._told = Verdict(end["code"], end["reason"], end["rank"], end["node"], tuple(end["tail"]))

    def _decide(self) -> Verdict | None:
        """On rank 0: return how the run ends, once that is clear."""
        assert self._hub is not None
        self._hub.listen()
        if "run" in self.child.facts and time.monotonic() - self._called_at > CALL_S:
            self._called_at = time.monotonic()
            self._while_running(Path(self.child.facts["run"]))
        states = [self.state(), *self._hub.all_states()]
        if (verdict := failed(states)) is not None:
            return verdict
        why = stuck(states, self.child.facts.get("hang_s"))
        return self._of_stacks(states, why) if why is not None else None

    def _of_stacks(self, states: list[RankState], why: str) -> Verdict:
        """Request the stack trace of every rank, and determine the cause."""
        assert self._hub is not None
        self._dump_asked = True
        self._hub.tell({"dump": True})
        self.child.ask_for_stack()
        deadline = time.monotonic() + STACK_S
        while time.monotonic() < deadline:
            self.child.poll(TICK_S)
            self._hub.listen()
        stacks = {state.rank: state.tail for state in [self.state(), *self._hub.all_states()]}
        return of_stuck(states, why, stacks)

    def _end(self, verdict: Verdict) -> int:
        if self._hub is not None:
            self._hub.end(verdict)
        elif self._spoke is not None:
            self._spoke.close()
        self.child.kill()
        if self._hub is not None:
            _show(verdict)
            run = self.child.facts.get("run")
            self._on_end(verdict, None if run is None else Path(run))
        elif verdict.rank == 0 and verdict.reason is not None and self._told is None:
            print(f"{self._node}: {verdict.reason}", file=sys.stderr)
        if verdict.rank not in (0, None) and self.child.withhold():
            print("See logs/rank-0.log for the messages of rank 0.", file=sys.stderr)
        self.child.release()
        return verdict.code


def _show(verdict: Verdict) -> None:
    """Report what happened, with the last lines of the rank concerned."""
    if verdict.reason is not None:
        tail = " Its last lines:" if verdict.tail and verdict.rank != 0 else ""
        print(f"{verdict.reason[0].upper()}{verdict.reason[1:]}.{tail}", file=sys.stderr)
    if verdict.tail and verdict.rank not in (0, None):
        print("\n".join(f"  | {line}" for line in verdict.tail), file=sys.stderr)
    sys.stderr.flush()
