"""Stopping on purpose: signals set a flag, on which all ranks agree between two steps."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

from aitrain.dist import early_signals, heartbeat
from aitrain.dist.group import Group
from aitrain.trainer.time_limit import TimeLimit

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
EXIT_AT_ONCE = 130
"""Exit code that shells report for a program ended by Ctrl-C."""


class Stopper:
    """Catches the signals that ask a run to stop; a second Ctrl-C stops immediately.

    Args:
        group: The ranks.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.reason: str | None = None
        self.limit = TimeLimit(os.environ if group.ranks.is_first else {})
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._caught)
        if early_signals.received():  # while the process was starting, before there was anything to stop
            self.reason = early_signals.received()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            # not KeyboardInterrupt: Lightning takes that for a wish to end in good order
            sys.exit(EXIT_AT_ONCE)
        self.reason = signal.Signals(number).name

    def agreed(self) -> bool:
        """Return whether any rank was asked to stop; every rank must call this at the same place."""
        return self.agreed_with(False)[0]

    def agreed_with(self, wish: bool) -> tuple[bool, bool]:
        """Return whether any rank was asked to stop, and whether any requests something; every rank must call this.

        Args:
            wish: This rank's request; it is sent together with the stop flag.
        """
        heartbeat.beat_again()
        if self.reason is None and self.limit.is_near():
            self.reason = "the time limit of the job"
        told = self.group.largest(2 if self.reason is not None else int(wish))
        if told == 2 and self.reason is None:
            self.reason = "another rank"
        return told == 2, told == 1


def own_signals(trainer: Any) -> None:
    """Keep Lightning from handling SIGTERM.

    Lightning 2.6 wraps our handler, broadcasts a tensor inside it (amid whatever collective is under way), ends the run
    after the next micro-batch with exit code 0 and no checkpoint, and asks every rank for its flag before every
    micro-batch, which on a GPU waits for the queue. There is no public switch for it.

    Args:
        trainer: A `lightning.pytorch.Trainer` that has not started.

    Raises:
        AttributeError: This version of Lightning does it elsewhere, so a stop would fail unnoticed.
    """
    for owner, name in (
        (trainer._signal_connector, "register_signal_handlers"),
        (trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor"),
    ):
        getattr(owner, name)
        setattr(owner, name, _nothing)


def _nothing() -> None:
    """Replace the signal handling of Lightning."""
