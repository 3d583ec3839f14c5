"""Starts the ranks of one machine, forwards signals, and ends all when one fails. No torch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

from aitrain.dist.ranks import Ranks

GRACE_S = 30.0
"""Seconds that the other ranks get to exit after one has failed."""

GRACE_AFTER_SECOND_S = 2.0
"""The same after a second Ctrl-C, when a user is waiting."""


def free_port() -> int:
    """Return a TCP port of this machine that is currently free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(command: Sequence[str], count: int) -> int:
    """Run one process per rank on this machine until all have ended.

    SIGTERM, SIGUSR1 and SIGINT are passed on to the ranks, each once. When a rank fails, the others get `GRACE_S`
    seconds and are then killed; after a second SIGINT they get `GRACE_AFTER_SECOND_S`.

    Args:
        command: Program and arguments, the same for every rank.
        count: Ranks to start.

    Returns:
        0 when all ranks ended with 0, 130 when a second SIGINT ended them, else the exit code of the first that failed.
    """
    port = free_port()
    # the cores are shared among the ranks: more threads than cores make every rank slower
    threads = str(max(1, (os.cpu_count() or 1) // count))
    children: list[subprocess.Popen[bytes]] = []
    handled = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    interrupts: list[float] = []

    def forward(number: int, _frame: object) -> None:
        if number == signal.SIGINT:
            interrupts.append(time.monotonic())
        for child in children:
            child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in handled}
    try:
        # children inherit the block, so that the signal waits until they can answer it; then ours is lifted again
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        for rank in range(count):
            place = Ranks(rank, count, rank, count, "127.0.0.1", port, "aitrain")
            env = {"OMP_NUM_THREADS": threads, **os.environ, **place.environment(), "AITRAIN_LAUNCHED": "1"}
            # their own process group: else the terminal's Ctrl-C reaches them twice, and a second one stops at once
            children.append(subprocess.Popen(list(command), env=env, process_group=0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        code = _wait(children, interrupts)
        # a rank that had to be killed says 137, which would read like a lack of memory
        return 128 + signal.SIGINT if code < 0 and len(interrupts) > 1 else code
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        for child in children:
            if child.poll() is None:
                child.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: list[subprocess.Popen[bytes]], interrupts: list[float]) -> int:
    failed: int | None = None
    deadline = float("inf")
    while any(child.poll() is None for child in children):
        codes = [child.poll() for child in children]
        bad = [code for code in codes if code not in (None, 0)]
        if bad and failed is None:
            failed, deadline = bad[0], time.monotonic() + GRACE_S
        if len(interrupts) > 1:
            deadline = min(deadline, interrupts[1] + GRACE_AFTER_SECOND_S)
        if time.monotonic() > deadline:
            for child in children:
                if child.poll() is None:
                    child.kill()
        time.sleep(0.05)
    if failed is None:
        failed = next((child.returncode for child in children if child.returncode), 0)
    return failed
