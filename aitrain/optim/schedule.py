"""The learning rate as a pure function of the step: its only state is one number. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from typing import cast

from aitrain.config.custom import typed_options
from aitrain.config.schedule import Constant, Cosine, CustomSchedule, Decay, Linear, Schedule, Wsd
from aitrain.errors import RecipeError
from aitrain.io.user_code import load_class


def warmup_steps(schedule: Schedule, total_steps: int) -> int:
    """Return the optimizer steps of the warm-up, derived from the length of the run when not given.

    Args:
        schedule: The recipe's schedule.
        total_steps: Optimizer steps of the whole run.
    """
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return round(0.03 * total_steps)


def learning_rate_factor(schedule: Schedule, step: int, total_steps: int) -> float:
    """Return the learning rate of one optimizer step as a share of the peak rate.

    Args:
        schedule: The recipe's schedule.
        step: Optimizer steps done before this one, from 0.
        total_steps: Optimizer steps of the whole run.

    Returns:
        A number from 0 to 1: rising over the warm-up (the first step is not zero), then as the schedule says. A decay
        ends after the last step, because a step at rate 0 would have no effect.

    Raises:
        RecipeError: Warm-up and decay are together longer than the run.
    """
    if isinstance(schedule, CustomSchedule):
        return _own_factor(schedule, step, total_steps)
    warmup = warmup_steps(schedule, total_steps)
    decay = _decay_steps(schedule, total_steps, warmup)
    if warmup + decay > total_steps:
        raise RecipeError(
            f"schedule.warmup_steps={warmup} and the decay over {decay} steps are longer than the run "
            f"of {total_steps} steps: "
            "write smaller numbers, or null for shares of the run"
        )
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if isinstance(schedule, Constant) or decay < 1:
        return 1.0
    assert isinstance(schedule, Decay)
    done = min(1.0, max(0.0, (step - (total_steps - decay)) / decay))
    share = 0.5 * (1 + math.cos(math.pi * done)) if isinstance(schedule, Cosine) else 1 - done
    return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * share


def own_schedule(schedule: CustomSchedule) -> Callable[[int, int], float]:
    """Make the user's schedule.

    Args:
        schedule: The recipe's schedule.

    Raises:
        RecipeError: There is no such class, it cannot be called, or its options are wrong.
    """
    found = load_class(schedule.file, schedule.class_, "schedule")
    if "__call__" not in vars(found):
        raise RecipeError(
            f"schedule.class={schedule.class_} cannot be called: write a method __call__(self, step, total_steps) that "
            "returns the share of the peak rate"
        )
    made = found()
    made.options = typed_options(found, schedule.options, "schedule.options.")
    return cast(Callable[[int, int], float], made)


@cache
def _made(file: str, name: str, options: str) -> Callable[[int, int], float]:
    return own_schedule(CustomSchedule(file=file, class_=name, options=json.loads(options)))


def _own_factor(schedule: CustomSchedule, step: int, total_steps: int) -> float:
    made = _made(schedule.file, schedule.class_, json.dumps(schedule.options))
    factor = made(step, total_steps)
    if not isinstance(factor, (int, float)) or not 0 <= factor < math.inf:
        raise RecipeError(
            f"schedule.class={schedule.class_} returns {factor!r} at step {step} of {total_steps}: it must be a share "
            "of the peak rate, 0 or more"
        )
    return float(factor)


def _decay_steps(schedule: Schedule, total_steps: int, warmup: int) -> int:
    if isinstance(schedule, Wsd):
        return schedule.decay_steps if schedule.decay_steps is not None else round(0.2 * total_steps)
    if isinstance(schedule, (Linear, Cosine)):
        return max(0, total_steps - warmup)
    return 0
