"""Finds the task that a recipe names: one of ours, or a class in a file of the user's."""

from __future__ import annotations

import importlib
from typing import Any, cast

from aitrain.config import RunConfig
from aitrain.config.task import Pretrain, Sft
from aitrain.models.load import Located, locate
from aitrain.tasks.task import Task

BUILT_IN: dict[type, str] = {
    Sft: "aitrain.tasks.causal_lm:CausalLM",
    Pretrain: "aitrain.tasks.causal_lm:CausalLM",
}
"""Keys of a task -> its class."""


def located_model(config: RunConfig) -> Located | None:
    """Look at the model that a recipe starts from; None where its task brings its own.

    Args:
        config: The run.

    Raises:
        ModelError: The model cannot be used; every reason is told.
    """
    wanted = config.task.model_kind
    return None if wanted is None or config.model.path is None else locate(config.model, wanted)


def task_of(config: RunConfig, accelerator: str = "cpu", located: Any = None) -> Task:
    """Make the task of a run.

    Args:
        config: The run.
        accelerator: `cpu` or `cuda`.
        located: The base model, when it was looked at already.

    Raises:
        ModelError: The model, or what comes with it, cannot be used.
    """
    module, name = BUILT_IN[type(config.task)].split(":")
    made = getattr(importlib.import_module(module), name)
    return cast(Task, made(config, accelerator, located if located is not None else located_model(config)))
