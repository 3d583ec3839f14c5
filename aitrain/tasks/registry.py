"""Finds the task that a recipe names: one of ours, or a class in the user's file."""

from __future__ import annotations

import importlib
from typing import cast

from aitrain.config import RunConfig
from aitrain.config.task import (
    ClassifyImage,
    ClassifyText,
    CustomTask,
    Embeddings,
    Forecast,
    Preference,
    PreferenceLoss,
    Pretrain,
    Reranker,
    Sft,
    TagTokens,
)
from aitrain.errors import RecipeError
from aitrain.io.user_code import load_class
from aitrain.models.load import Located, locate
from aitrain.tasks.task import Task

BUILT_IN: dict[type, str] = {
    Sft: "aitrain.tasks.causal_lm:CausalLM",
    Pretrain: "aitrain.tasks.causal_lm:CausalLM",
    ClassifyText: "aitrain.tasks.classify_text:ClassifyText",
    ClassifyImage: "aitrain.tasks.classify_image:ClassifyImage",
    TagTokens: "aitrain.tasks.tag_tokens:TagTokens",
    Embeddings: "aitrain.tasks.embeddings:Embeddings",
    Forecast: "aitrain.tasks.forecast:ForecastTask",
    Reranker: "aitrain.tasks.reranker:Reranker",
    Preference: "aitrain.tasks.preference:PreferenceTask",
}
"""Keys of a task -> its class."""

KTO = "aitrain.tasks.kto:KtoTask"
"""The only loss of `task=preference` that needs the full global batch."""


def class_of(config: RunConfig) -> type[Task]:
    """Return the class of a run's task.

    Args:
        config: The run.

    Raises:
        RecipeError: The user's file has no such class, or it is no task.
    """
    if not isinstance(config.task, CustomTask):
        judged = isinstance(config.task, Preference) and config.task.loss is PreferenceLoss.kto
        module, name = (KTO if judged else BUILT_IN[type(config.task)]).split(":")
        return cast(type[Task], getattr(importlib.import_module(module), name))
    found = load_class(config.task.file, config.task.class_, "task")
    if not issubclass(found, Task):
        raise RecipeError(f"task.class={config.task.class_} is not a task: inherit from aitrain.tasks.task.Task")
    lacks = sorted(getattr(found, "__abstractmethods__", ()))
    if lacks:
        raise RecipeError(
            f"task.class={config.task.class_} is missing {', '.join(lacks)}: write them, see aitrain.tasks.task"
        )
    return found


def located_model(config: RunConfig) -> Located | None:
    """Locate the model that a recipe starts from; None if its task brings its own.

    Args:
        config: The run.

    Raises:
        ModelError: The model cannot be used; every reason is told.
    """
    wanted = class_of(config).model_kind if isinstance(config.task, CustomTask) else config.task.model_kind
    return None if wanted is None or config.model.path is None else locate(config.model, wanted)


def task_of(config: RunConfig, accelerator: str = "cpu", located: Located | None = None) -> Task:
    """Build the task of a run.

    Args:
        config: The run.
        accelerator: `cpu` or `cuda`.
        located: The base model, when it was looked at already.

    Raises:
        ModelError: The model, or what comes with it, cannot be used.
    """
    return class_of(config)(config, accelerator, located if located is not None else located_model(config))
