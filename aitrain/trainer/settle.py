"""Chooses values for `auto`: precision from the machine, global batch and epochs from the size of the data."""

from __future__ import annotations

import math
from dataclasses import replace

from aitrain.config import RunConfig
from aitrain.config.trainer import AUTO, FEW_STEPS, Precision
from aitrain.data.batches import total_steps
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.trainer.run_directory import RunDirectory

WANTED_STEPS = 100
"""Optimizer steps after which a fine-tuned model usually shows an effect."""

BATCHES = (32, 16, 8, 4)
"""Global batches to choose from, the largest first."""

FEWEST_EPOCHS, MOST_EPOCHS = 3, 10
"""More passes over few samples memorise them."""


def settle_precision(config: RunConfig, accelerator: str) -> RunConfig:
    """Return the configuration with the precision of this machine: bf16 on a GPU, fp32 on a CPU.

    Args:
        config: The run.
        accelerator: `cpu` or `cuda`.
    """
    if config.trainer.precision is not Precision.auto:
        return config
    precision = Precision.bf16 if accelerator == "cuda" else Precision.fp32
    return replace(config, trainer=replace(config.trainer, precision=precision))


def settle_length(config: RunConfig, size: int, ranks: int) -> RunConfig:
    """Return the configuration with `auto` replaced by a global batch and a number of epochs.

    The batch is the largest with which `FEWEST_EPOCHS` give `WANTED_STEPS` optimizer steps; with few samples, more
    epochs are taken. Once chosen, both are frozen in the run, so that it continues with them on any number of ranks.

    Args:
        config: The run.
        size: Training samples.
        ranks: Data-parallel ranks, each of which needs at least one sample per step.
    """
    keys = config.trainer
    batch, epochs = keys.global_batch_samples, keys.max_epochs
    if batch == AUTO:
        batch = _batch(size, ranks * (keys.micro_batch_samples or 1))
    if epochs == AUTO:
        wanted = math.ceil(WANTED_STEPS / math.ceil(size / batch))
        epochs = float(min(MOST_EPOCHS, max(FEWEST_EPOCHS, wanted)))
    return replace(config, trainer=replace(keys, global_batch_samples=batch, max_epochs=epochs))


def settle(directory: RunDirectory, config: RunConfig, size: int, ranks: Ranks, group: Group) -> RunConfig:
    """Choose the values for `auto` and freeze them, once.

    Args:
        directory: The run.
        config: Its configuration.
        size: Training samples.
        ranks: This process's place.
        group: The ranks.
    """
    found = settle_length(config, size, ranks.data_size)

    def keep() -> None:
        if directory.config() != found:
            directory.freeze(found)

    group.by_first(keep)
    return found


def _batch(size: int, at_once: int) -> int:
    """Return the global batch for a number of samples, a multiple of the data-parallel ranks."""
    fitting = [batch for batch in BATCHES if FEWEST_EPOCHS * size / batch >= WANTED_STEPS]
    wanted = fitting[0] if fitting else BATCHES[-1]
    return math.ceil(wanted / at_once) * at_once


def few_steps(config: RunConfig, size: int) -> str | None:
    """Return a warning if a run is too short to learn much, with the keys that make it longer.

    Args:
        config: The run, settled.
        size: Training samples.
    """
    keys = config.trainer
    steps, samples = total_steps(size, keys.global_batch_samples, keys.max_steps, keys.max_epochs)
    if steps >= FEW_STEPS:
        return None
    found = (
        f"Warning: only {steps} optimizer {'step' if steps == 1 else 'steps'} ({samples:,} samples in batches of "
        f"{keys.global_batch_samples}), which is too short to learn much; aim for at least {WANTED_STEPS}"
    )
    if keys.max_steps is not None and keys.max_steps <= steps:
        return f"{found}: write trainer.max_steps={WANTED_STEPS}"
    open_keys = replace(keys, global_batch_samples=AUTO, max_epochs=float(AUTO))
    better = settle_length(replace(config, trainer=open_keys), size, 1).trainer
    if total_steps(size, better.global_batch_samples, None, better.max_epochs)[0] > steps:
        return f"{found}: write trainer.global_batch_samples=auto trainer.max_epochs=auto, or add data"
    return f"{found}: add data, or set a larger trainer.max_epochs"
