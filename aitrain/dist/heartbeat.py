"""Heartbeats from a rank to its supervisor: its progress, its current activity and its log. No torch."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VARIABLE = "AITRAIN_HEARTBEAT_FD"
"""Environment variable with the number of the pipe to the supervisor."""

STACK_SIGNAL = signal.SIGUSR2
"""Signal at which a rank writes the stack traces of its threads to standard error, even if Python is stuck."""

_PR_SET_PDEATHSIG = 1
"""prctl(2): the signal this process gets when its parent dies."""

SMALLEST_GROWTH = 1 << 20
"""Bytes written since the last look that count as progress of a long write."""

_pipe: int | None = None
_doing = "starting"


def connect() -> None:
    """Connect to the supervisor of this process, if it has one, and handle its request for stack traces."""
    global _pipe
    number = os.environ.pop(VARIABLE, None)  # not for processes that this one starts
    if number is None:
        return
    _pipe = int(number)
    os.set_inheritable(_pipe, False)
    os.set_blocking(_pipe, False)
    faulthandler.register(STACK_SIGNAL, file=sys.stderr, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {STACK_SIGNAL})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def beat(doing: str) -> None:
    """Report progress; takes microseconds, and does nothing without a supervisor.

    Args:
        doing: Current activity in a few words, for instance `step 12`.
    """
    global _doing
    _doing = doing
    if _pipe is not None:
        _send({"doing": doing})


def beat_again() -> None:
    """Report that the last activity still makes progress."""
    beat(_doing)


@contextlib.contextmanager
def beating_while_writing(doing: str, every_s: float = 10.0) -> Iterator[None]:
    """Report progress inside the block while this process writes, for library calls that write for long.

    Args:
        doing: What is written, in a few words.
        every_s: Seconds between two looks.

    Yields:
        Nothing.
    """
    ended = threading.Event()

    def watch() -> None:
        before = _written()
        while not ended.wait(every_s):
            now = _written()
            if now - before >= SMALLEST_GROWTH:
                beat(doing)
                before = now

    beat(doing)
    thread = threading.Thread(target=watch, daemon=True)
    if _pipe is not None:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.is_alive():
            thread.join()


def _written() -> int:
    """Return the bytes that this process has written, to files and elsewhere."""
    with contextlib.suppress(OSError):  # a kernel that does not count: then only `hang_s` itself protects a long write
        for line in Path("/proc/self/io").read_text().splitlines():
            if line.startswith("wchar: "):
                return int(line.split()[1])
    return 0


def tell(**facts: Any) -> None:
    """Send the supervisor a fact about the run.

    Args:
        facts: `run` (the run directory) and `hang_s` (seconds without progress that are too many, or null).
    """
    if _pipe is not None:
        _send(facts)


def _send(facts: dict[str, Any]) -> None:
    assert _pipe is not None
    with contextlib.suppress(BlockingIOError, BrokenPipeError):  # a supervisor that does not read is not waited for
        os.write(_pipe, (json.dumps(facts) + "\n").encode())
