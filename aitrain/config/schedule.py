"""Keys of the group `schedule`: the learning rate over the steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aitrain.config.custom import UserClass


@dataclass
class Schedule:
    """Keys of every schedule."""

    warmup_steps: int | None = None
    """Optimizer steps over which the rate rises linearly from 0; `null` = 3 % of all steps."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        if self.warmup_steps is not None and self.warmup_steps < 0:
            yield f"schedule.warmup_steps={self.warmup_steps} must be 0 or more, or null for 3 % of all steps"


@dataclass
class Constant(Schedule):
    """The peak rate until the end."""


@dataclass
class Decay(Schedule):
    """Keys of the decaying schedules."""

    min_lr_ratio: float = 0.0
    """Share of the peak rate that is reached just after the last step, so that the last step still learns."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        yield from super().faults()
        if not 0 <= self.min_lr_ratio <= 1:
            yield f"schedule.min_lr_ratio={self.min_lr_ratio} must be between 0 and 1"


@dataclass
class Linear(Decay):
    """A straight line from the peak to `min_lr_ratio`."""


@dataclass
class Cosine(Decay):
    """Half a cosine from the peak to `min_lr_ratio` (Loshchilov and Hutter, arXiv:1608.03983)."""


@dataclass
class Wsd(Decay):
    """Warm-up, stable, decay (Hu et al., arXiv:2404.06395): constant, then a straight line at the end."""

    decay_steps: int | None = None
    """Optimizer steps of the final decay; `null` = 20 % of all steps."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        yield from super().faults()
        if self.decay_steps is not None and self.decay_steps < 0:
            yield f"schedule.decay_steps={self.decay_steps} must be 0 or more, or null for 20 % of all steps"


@dataclass
class CustomSchedule(UserClass, Schedule):
    """Your own schedule: a class in your own file whose instances, called with the step (from 0) and the number of
    steps, return the learning rate as a share of `optim.lr`. `schedule.warmup_steps` has no effect on it."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        if self.warmup_steps is not None:
            yield (
                f"schedule.warmup_steps={self.warmup_steps} has no effect on schedule=custom, which decides every step "
                "by itself: remove it"
            )
