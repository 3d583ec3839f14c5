"""What can be refused only when model and data are known: `train` and `check` ask the same."""

from __future__ import annotations

from typing import Any

from aitrain.config import RunConfig
from aitrain.config.values import shown
from aitrain.errors import RecipeError
from aitrain.models.folder import inspect
from aitrain.optim.schedule import learning_rate_factor
from aitrain.trainer.evaluation import prompt_ids
from aitrain.trainer.progress import Progress


def refuse_late_faults(config: RunConfig, tokenizer: Any, steps: int) -> None:
    """Refuse what only shows when model and data are known; `check` asks this too.

    Args:
        config: The run.
        tokenizer: The model's tokenizer.
        steps: Its optimizer steps.

    Raises:
        RecipeError: The schedule is longer than the run, or a prompt is too long or cannot be written.
    """
    learning_rate_factor(config.schedule, 0, steps)
    room = inspect(config.model).context_tokens
    for prompt in config.evaluate.prompts:
        tokens = len(prompt_ids(prompt, tokenizer, config)) + config.evaluate.max_new_tokens
        if room is not None and tokens > room:
            raise RecipeError(
                f"evaluate.prompts: {prompt[:40]!r} and an answer of evaluate.max_new_tokens="
                f"{config.evaluate.max_new_tokens} need {tokens} tokens, but the model's context has {room}: "
                "shorten one of them"
            )


def refuse_finished(config: RunConfig, steps: int, progress: Progress) -> None:
    """Refuse to go on with a run that has done everything.

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
        f"instance trainer.{name}={shown(2 * value)}"
    )
