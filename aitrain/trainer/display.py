"""The progress display of a run: one updated line on a terminal, plain lines in a log. No torch."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

from aitrain.io.terminal import can_move
from aitrain.trainer.logs import note


def duration(seconds: float) -> str:
    """Return a duration in readable form.

    Args:
        seconds: Any length.

    >>> duration(59), duration(61), duration(3725)
    ('59 s', '1:01 min', '1:02:05 h')
    """
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d} h"
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"


class Display:
    """Shows the steps of a run on rank 0 and nothing elsewhere.

    Args:
        active: Whether this rank prints.
        total_steps: Optimizer steps of the whole run.
        out: Stream to write to; standard error when absent.
        line_every_s: Without a terminal, seconds between plain lines.
    """

    def __init__(self, active: bool, total_steps: int, out: TextIO | None = None, line_every_s: float = 10.0) -> None:
        self.out = out or sys.stderr
        self.active = active
        self.total = total_steps
        self.moving = can_move(self.out)
        self.line_every_s = line_every_s
        self._last_line = 0.0
        self._open = False

    def step(self, done: int, loss: float, speed: str, left_s: float) -> None:
        """Show a finished optimizer step.

        Args:
            done: Steps done.
            loss: Loss of this step.
            speed: Units per second over all ranks, in words.
            left_s: Seconds left, from the steps so far.
        """
        if not self.active:
            return
        text = f"step {done}/{self.total}  loss {loss:.4f}  {speed}  {duration(left_s)} left"
        if self.moving:
            columns = shutil.get_terminal_size().columns
            self.out.write(f"\r\033[K{self._bar(done, columns - len(text) - 4)}{text}"[: columns + 3])
            self._open = True
        elif done == self.total or done == 1 or time.monotonic() - self._last_line >= self.line_every_s:
            self.out.write(text + "\n")
            self._last_line = time.monotonic()
        self.out.flush()

    def _bar(self, done: int, room: int) -> str:
        """Return a progress bar; empty if there is little room next to the text."""
        width = min(24, room)
        if width < 8:
            return ""
        filled = round(width * done / max(1, self.total))
        unicode = str(getattr(self.out, "encoding", None) or "utf-8").lower().startswith("utf")
        full, empty = ("█", "░") if unicode else ("#", ".")
        return f"[{full * filled}{empty * (width - filled)}] "

    def say(self, text: str) -> None:
        """Print a permanent line.

        Args:
            text: One or more lines.
        """
        if not self.active:
            return
        note(text)
        if self._open:
            self.out.write("\n")
            self._open = False
        self.out.write(text + "\n")
        self.out.flush()
