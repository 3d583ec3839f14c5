"""The primary metric of a run. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """The primary metric of a run, used by checkpoints, early stopping and sweeps."""

    name: str = "loss"
    greater_is_better: bool = False

    def is_better(self, value: float, than: float | None, by: float = 0.0) -> bool:
        """Return whether a value is better than another one.

        Args:
            value: The new value.
            than: The old one; None = there is none yet.
            by: A smaller difference is none.
        """
        if than is None:
            return True
        return value > than + by if self.greater_is_better else value < than - by
