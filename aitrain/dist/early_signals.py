"""Remembers SIGUSR1 while a process is still starting, instead of being killed by it. No torch."""

from __future__ import annotations

import signal

from aitrain.dist import heartbeat

_received: list[str] = []


def hold() -> None:
    """Remember SIGUSR1 from now on; a run later installs its own handlers.

    By default Python would die, and Slurm may send the signal while torch is still being imported. A parent
    that starts ranks blocks the signal around that (`aitrain.dist.processes`, `rank_process`), so it is unblocked here.
    From now on, the supervisor of this process, if it has one, receives heartbeats.
    """
    heartbeat.connect()
    signal.signal(signal.SIGUSR1, lambda number, _frame: _received.append(signal.Signals(number).name))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def received() -> str | None:
    """Return the name of a signal that came since `hold`, or None."""
    return _received[-1] if _received else None
