"""Keys of the group `checkpoint`: when and where checkpoints are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Checkpoint:
    """When and where checkpoints are written."""

    every_min: float | None = 30.0
    """Minutes between checkpoints, which is the most that a crash can cost; `null` = not by time. The best checkpoint
    is also updated at most this often."""

    every_steps: int | None = None
    """Optimizer steps between checkpoints; `null` = not by steps. A checkpoint is always written at the end and when
    the run is stopped.
    """

    keep: int = 2
    """Newest checkpoints kept; the best one by validation loss is kept in addition."""

    path: str | None = None
    """Folder of the checkpoints; `null` = `checkpoints/` in the run directory."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        if self.every_steps is not None and self.every_steps < 1:
            yield f"checkpoint.every_steps={self.every_steps} must be at least 1, or null for none by steps"
        if self.every_min is not None and self.every_min <= 0:
            yield f"checkpoint.every_min={self.every_min} must be above 0, or null for none by time"
        if self.keep < 1:
            yield f"checkpoint.keep={self.keep} must be at least 1: the newest checkpoint is never deleted"
