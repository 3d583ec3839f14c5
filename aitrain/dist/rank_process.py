"""A rank as its supervisor sees it: a process, its output, and its progress. No torch."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from aitrain.dist.heartbeat import STACK_SIGNAL, VARIABLE

TAIL_LINES = 100
EARLY_LINES = 1000
LONGEST_LINE = 2000
HOLD_S = 5.0
TRACEBACK = b"Traceback (most recent call last)"


class RankProcess:
    """A rank that was started as a child of this process.

    Args:
        command: Program and arguments.
        environment: Its variables.
        rank: Its number; what rank 0 prints is passed on, what others print goes to `logs/rank-N.log`.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], rank: int) -> None:
        self.rank = rank
        self.code: int | None = None
        self.doing = "starting"
        self.beat_at = time.monotonic()
        self.beats = 0
        self.stopped_at: float | None = None
        self.facts: dict[str, Any] = {}
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._early: deque[bytes] = deque(maxlen=EARLY_LINES)
        self._held: list[bytes] = []
        self._held_at = 0.0
        self._log: BinaryIO | None = None
        self._rests: dict[int, bytes] = {}
        self.selector = selectors.DefaultSelector()
        reading, writing = os.pipe()
        # what is blocked here is blocked in the child until it can answer
        early = {signal.SIGUSR1, STACK_SIGNAL}
        signal.pthread_sigmask(signal.SIG_BLOCK, early)
        try:
            self.process = subprocess.Popen(
                list(command),
                env={**environment, VARIABLE: str(writing), "PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[writing],
                process_group=0,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, early)
            os.close(writing)
        assert self.process.stdout is not None and self.process.stderr is not None
        self._listen(reading, self._heard)
        self._listen(self.process.stdout.fileno(), lambda line: self._printed(line, sys.stdout.buffer))
        self._listen(self.process.stderr.fileno(), lambda line: self._printed(line, sys.stderr.buffer))

    def _listen(self, descriptor: int, answer: Callable[[bytes], None]) -> None:
        os.set_blocking(descriptor, False)
        self.selector.register(descriptor, selectors.EVENT_READ, answer)

    def read(self, descriptor: int, answer: Callable[[bytes], None]) -> None:
        """Read one of the pipes.

        Args:
            descriptor: The pipe.
            answer: Called with each line.
        """
        try:
            content = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return
        *lines, rest = (self._rests.pop(descriptor, b"") + content).split(b"\n")
        if content:
            self._rests[descriptor] = rest
        else:
            self.selector.unregister(descriptor)
            lines += [rest] if rest else []
        for line in lines:
            answer(line)

    def _heard(self, line: bytes) -> None:
        try:
            facts = json.loads(line)
        except ValueError:  # cut, because the pipe was full
            return
        if "doing" in facts:
            self.doing, self.beat_at = str(facts["doing"]), time.monotonic()
            self.beats += 1
        else:
            self.facts |= facts
            self._open_log()

    def _printed(self, line: bytes, stream: BinaryIO) -> None:
        self.tail.append(line[:LONGEST_LINE].decode(errors="replace"))
        if self.rank != 0:
            self._to_log(line)
        elif self._held or TRACEBACK in line:
            # perhaps only a consequence of what happened to another rank: that comes first
            self._held_at = self._held_at if self._held else time.monotonic()
            self._held.append(line)
        else:
            _write(stream, line)

    def _to_log(self, line: bytes) -> None:
        if self._log is None:
            self._early.append(line)
        else:
            _write(self._log, line)

    def _open_log(self) -> None:
        if self._log is not None or self.rank == 0 or "run" not in self.facts:
            return
        path = Path(self.facts["run"]) / "logs" / f"rank-{self.rank}.log"
        with suppress(OSError):  # rank_log reports it
            path.parent.mkdir(exist_ok=True)
            self._log = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the rank lives)
            while self._early:
                _write(self._log, self._early.popleft())

    def poll(self, wait_s: float) -> None:
        """Wait briefly for output, and check whether the process has ended or was stopped.

        Args:
            wait_s: Longest wait, in seconds.
        """
        for key, _ in self.selector.select(wait_s) if self.selector.get_map() else []:
            self.read(key.fd, key.data)
        if self.code is not None:
            return
        if self._held and time.monotonic() - self._held_at > HOLD_S:
            self.release()
        pid, status = os.waitpid(self.process.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if not pid:
            return
        if os.WIFSTOPPED(status):
            self.stopped_at = time.monotonic()
        elif os.WIFCONTINUED(status):
            self.stopped_at = None
        else:
            self.code = os.waitstatus_to_exitcode(status)
            self.process.returncode = self.code
            self._drain()

    def _drain(self) -> None:
        """Read the remaining output of an ended process, without waiting for grandchildren that hold its pipes."""
        for _ in range(64):
            ready = self.selector.select(0) if self.selector.get_map() else []
            if not ready:
                return
            for key, _ in ready:
                self.read(key.fd, key.data)

    def release(self) -> None:
        """Print the withheld output: a traceback of rank 0."""
        for line in self._held:
            _write(sys.stderr.buffer, line)
        self._held.clear()

    def withhold(self) -> bool:
        """Drop the withheld output, because another rank was the cause; `logs/rank-0.log` has it.

        Returns:
            Whether there was anything.
        """
        had = bool(self._held)
        self._held.clear()
        return had

    def send(self, number: int) -> None:
        """Send the process a signal, unless it has ended.

        Args:
            number: The signal.
        """
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def ask_for_stack(self) -> None:
        """Make the process write its stack traces to its log; a stopped one is continued for that."""
        self.send(STACK_SIGNAL)
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process, and read its last output."""
        self.send(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self.code is None and time.monotonic() < deadline:
            self.poll(0.05)


def _write(stream: Any, line: bytes) -> None:
    with suppress(OSError, ValueError):  # no reader any more: the run does not depend on it
        stream.write(line + b"\n")
        stream.flush()
