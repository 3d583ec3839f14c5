"""Keys of the group `evaluate`: what to measure on held-out data, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Evaluate:
    """Evaluation during and after training."""

    every_steps: int | None = None
    """Optimizer steps between evaluations; `null` = only before the first and after the last step."""

    micro_batch_samples: int | None = None
    """Micro-batch of the evaluation, in samples per device; `null` = as in training."""

    prompts: list[str] = field(default_factory=list)
    """Prompts the model answers before and after training, greedily."""

    answered_samples: int = 0
    """Held-out conversations whose first answer the model writes before and after training, for comparison with the
    target; evenly spaced over the held-out data.
    """

    max_new_tokens: int = 64
    """Longest answer to a prompt, in tokens."""

    patience: int | None = None
    """Stop when the validation loss has not improved in this many evaluations; `null` = never stop early."""

    min_improvement: float = 0.0
    """A smaller decrease of the validation loss does not count as an improvement."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        for key in ("every_steps", "micro_batch_samples", "patience", "max_new_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                yield f"evaluate.{key}={value} must be at least 1"
        if self.answered_samples < 0:
            yield f"evaluate.answered_samples={self.answered_samples} must be 0 or more"
        if self.min_improvement < 0:
            yield f"evaluate.min_improvement={self.min_improvement} must be 0 or more"
        if self.patience is not None and self.every_steps is None:
            yield f"evaluate.patience={self.patience} has no effect without evaluate.every_steps: give it too"
