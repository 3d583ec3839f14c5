"""Faults that can be found only once model and data are known; shared by `train` and `check`."""

from __future__ import annotations

from aitrain.config import RunConfig
from aitrain.config.values import format_value
from aitrain.data.samples import Splits
from aitrain.errors import RecipeError
from aitrain.optim.schedule import learning_rate_factor
from aitrain.tasks.task import Task
from aitrain.trainer.progress import Progress


def refuse_late_faults(task: Task, splits: Splits, steps: int) -> None:
    """Refuse what can be found only once model and data are known; `check` calls this too.

    Args:
        task: What is trained.
        splits: The samples.
        steps: Optimizer steps of the run.

    Raises:
        RecipeError: The schedule is longer than the run, or the task cannot work as asked.
    """
    learning_rate_factor(task.config.schedule, 0, steps)
    task.refuse_late(splits)


def refuse_finished(config: RunConfig, steps: int, progress: Progress) -> None:
    """Refuse to continue a run that is complete.

    Args:
        config: The run.
        steps: Its optimizer steps.
        progress: How far it is.

    Raises:
        RecipeError: The run is finished already.
    """
    if progress.step < steps:
        return
    by_steps = config.trainer.max_steps == steps
    name, value = ("max_steps", steps) if by_steps else ("max_epochs", config.trainer.max_epochs or 1)
    raise RecipeError(
        f"Training is already complete ({progress.step} of {steps} steps). To continue, set a larger limit, for "
        f"instance trainer.{name}={format_value(2 * value)}"
    )
