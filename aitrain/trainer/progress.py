"""How far a run is: the plain numbers that a checkpoint keeps and a resumed run goes on from. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Progress:
    """Totals over all ranks and all restarts."""

    step: int = 0
    """Optimizer steps done."""

    samples: int = 0
    """Samples seen."""

    tokens: int = 0
    """Tokens seen, padding not counted."""

    seconds: float = 0.0
    """Seconds spent in optimizer steps."""

    total_steps: int | None = None
    """Optimizer steps that the run was to do when this was written."""

    best_loss: float | None = None
    """Lowest validation loss so far."""

    best_step: int | None = None
    """Step with the lowest validation loss among those whose checkpoint was kept."""

    evaluations_without_improvement: int = 0
    validation: dict[str, float] = field(default_factory=dict)
    """Step (as text) -> validation loss."""

    def as_state(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """Return the progress a checkpoint holds.

        Args:
            state: The checkpoint's plain values.
        """
        return cls(**{key: state[key] for key in cls.__dataclass_fields__ if key in state})

    def note_kept(self) -> None:
        """Take in that this step's checkpoint is kept."""
        loss = self.validation.get(str(self.step))
        best = None if self.best_step is None else self.validation.get(str(self.best_step))
        if loss is not None and self.step and (best is None or loss < best):
            self.best_step = self.step

    def is_stopped_early(self, patience: int | None) -> bool:
        """Return whether the validation loss has no longer improved for as long as the run waits for it.

        Args:
            patience: Evaluations without improvement that end a run; None = it is never ended so.
        """
        return patience is not None and self.evaluations_without_improvement >= patience

    def judge(self, loss: float, min_improvement: float) -> bool:
        """Take in a validation loss.

        Args:
            loss: Mean over the trained tokens of the held-out data.
            min_improvement: A smaller fall is none.

        Returns:
            Whether it is the best so far.
        """
        self.validation[str(self.step)] = loss
        if self.best_loss is None or loss < self.best_loss - min_improvement:
            self.best_loss, self.evaluations_without_improvement = loss, 0
            return True
        self.evaluations_without_improvement += 1
        return False
