"""Progress of a run: the numbers that a checkpoint keeps and a resumed run continues from. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from aitrain.tasks.metric import Metric

_NAMES_BEFORE = {"tokens": "units", "best_loss": "best"}
"""Names that older checkpoints have."""


@dataclass
class Progress:
    """Totals over all ranks and all restarts."""

    step: int = 0
    """Optimizer steps done."""

    samples: int = 0
    """Samples seen."""

    units: int = 0
    """Units seen (tokens, images), padding not counted."""

    seconds: float = 0.0
    """Seconds spent in optimizer steps."""

    total_steps: int | None = None
    """Optimizer steps that the run was to do when this was written."""

    best: float | None = None
    """Best value of the primary metric on the held-out data so far."""

    best_step: int | None = None
    """Step with the best value among those whose checkpoint was kept."""

    evaluations_without_improvement: int = 0
    validation: dict[str, float] = field(default_factory=dict)
    """Step (as text) -> primary metric on the held-out data."""

    def as_state(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """Return the progress a checkpoint holds.

        Args:
            state: The checkpoint's plain values.
        """
        now = {_NAMES_BEFORE.get(key, key): value for key, value in state.items()}
        return cls(**{key: now[key] for key in cls.__dataclass_fields__ if key in now})

    def note_kept(self, metric: Metric) -> None:
        """Record that the checkpoint of this step is kept.

        Args:
            metric: The primary metric.
        """
        value = self.validation.get(str(self.step))
        best = None if self.best_step is None else self.validation.get(str(self.best_step))
        if value is not None and self.step and metric.is_better(value, best):
            self.best_step = self.step

    def is_stopped_early(self, patience: int | None) -> bool:
        """Return whether the primary metric has not improved within the patience of the run.

        Args:
            patience: Evaluations without improvement that end a run; None = never stop early.
        """
        return patience is not None and self.evaluations_without_improvement >= patience

    def judge(self, value: float, metric: Metric, min_improvement: float) -> bool:
        """Record a measurement on the held-out data.

        Args:
            value: The primary metric.
            metric: Which one that is.
            min_improvement: Smaller improvements do not count.

        Returns:
            Whether it is the best so far.
        """
        self.validation[str(self.step)] = value
        if metric.is_better(value, self.best, min_improvement):
            self.best, self.evaluations_without_improvement = value, 0
            return True
        self.evaluations_without_improvement += 1
        return False
