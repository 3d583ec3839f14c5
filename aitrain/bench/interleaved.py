"""Lets processes train in turn, step by step, so that other load on the machine affects all of them equally."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO

from aitrain.errors import AitrainError

TURN = "AITRAIN_BENCH_TURN"
"""Environment variable: file descriptors for permission to step and for the end of a step, comma-separated."""


class StepClock:
    """Notes begin and end of each step in the process that trains, and waits for its turn in between."""

    def __init__(self) -> None:
        self.begins: list[float] = [time.perf_counter()]
        self.ends: list[float] = []
        self._pipes = [int(word) for word in os.environ.get(TURN, "").split(",") if word]

    def end_step(self) -> None:
        """Note the end of a step; the next one begins when it is this process's turn again."""
        self.ends.append(time.perf_counter())
        if self._pipes:
            may, done = self._pipes
            os.write(done, b".")
            os.read(may, 1)
        self.begins.append(time.perf_counter())


class Player:
    """A training process, as seen by the one that schedules the steps.

    Args:
        name: What it is called.
        command: Program and arguments.
        environment: Its environment.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        may_read, self._may = os.pipe()
        self._done, done_write = os.pipe()
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        self._process = subprocess.Popen(
            command,
            env={**environment, TURN: f"{may_read},{done_write}"},
            pass_fds=(may_read, done_write),
            stdout=self._said,
            stderr=subprocess.STDOUT,
        )
        os.close(may_read)
        os.close(done_write)

    def wait_for_step(self) -> None:
        """Wait until the running step has ended.

        Raises:
            AitrainError: The process has ended instead.
        """
        if not os.read(self._done, 1):
            raise AitrainError(self._account_of_the_end())

    def step(self) -> None:
        """Run one step, and wait for its end.

        Raises:
            AitrainError: The process has ended instead.
        """
        try:
            os.write(self._may, b".")
        except BrokenPipeError:  # no reader any more: it has ended
            raise AitrainError(self._account_of_the_end()) from None
        self.wait_for_step()

    def finish(self) -> None:
        """Run it to its end.

        Raises:
            AitrainError: It did not end well.
        """
        os.close(self._may)
        self._process.wait()
        os.close(self._done)
        if self._process.returncode:
            raise AitrainError(self._account_of_the_end())

    def kill(self) -> None:
        """End it, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _account_of_the_end(self) -> str:
        code = self._process.wait()
        self._said.seek(0)
        lines = "\n".join(self._said.read().decode(errors="replace").splitlines()[-40:])
        return f"{self.name} did not run: exit code {code}; its last lines:\n{lines}"


def play(players: Sequence[Player], steps: int) -> None:
    """Run the remaining steps of processes that have ended their first, in turn; each round starts with another one.

    Args:
        players: Who trains.
        steps: Optimizer steps of each, the first one included.

    Raises:
        AitrainError: One of them ended before its last step.
    """
    for number in range(1, steps):
        shift = number % len(players)
        for player in (*players[shift:], *players[:shift]):
            player.step()
    for player in players:
        player.finish()
