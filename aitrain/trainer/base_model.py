"""Measures a model that was not trained here: the base model of a run, or any model alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from aitrain.config import RunConfig
from aitrain.config.adapter import NoAdapter
from aitrain.config.trainer import Accelerator
from aitrain.config.values import quoted
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.errors import RecipeError
from aitrain.preflight import refuse_faults
from aitrain.recipe import amend, compose
from aitrain.tasks.registry import task_of
from aitrain.trainer.evaluation import measure, measuring
from aitrain.trainer.fit import choose_accelerator
from aitrain.trainer.run_directory import RunDirectory
from aitrain.trainer.settle import settle_precision


def evaluate_base(run: Path, data: str | None, overrides: Sequence[str] = ()) -> None:
    """Measure the base model of a run on its held-out data, and print what was found.

    Args:
        run: The run directory.
        data: Held-out data; None = that of the run.
        overrides: How the held-out file is read, where it differs from the training data.

    Raises:
        RecipeError: There is no held-out data.
    """
    _print(measuring(amend(RunDirectory.open(run).config(), overrides, for_file=True), data))


_SET = {
    "model.path": "the model that is measured is given first",
    "data.path": "--data names the records that are measured",
    "data.validation_samples": "all records of --data are measured",
}
"""Keys that `evaluate MODEL` sets -> why."""


def evaluate_model(model: str, data: str, recipe: str, overrides: Sequence[str]) -> None:
    """Measure a model alone, and print what was found.

    Args:
        model: A folder, a `.gguf` file or `asset:NAME`.
        data: Held-out data.
        recipe: Recipe whose task the model does.
        overrides: Keys of that recipe.

    Raises:
        AitrainError: The model or the data cannot be used, or a key is among those set here.
    """
    for word in overrides:
        key = word.lstrip("+~").partition("=")[0]
        if key in _SET:
            raise RecipeError(f"{word} has no effect here, because {_SET[key]}: remove it")
    words = [f"model.path={quoted(model)}", f"data.path={quoted(data)}", "data.validation_samples=null"]
    config = compose(recipe, [*overrides, *words])
    refuse_faults(config)
    _print(measuring(config, data))


def _print(config: RunConfig) -> None:
    accelerator = choose_accelerator(config)
    config = settle_precision(replace(config, adapter=NoAdapter()), accelerator)
    task = task_of(config, accelerator)
    splits = task.samples(Group(Ranks(), "cpu"))
    if splits.validation is None:
        raise RecipeError("the recipe has no held-out data: give a file with --data FILE")
    torch.manual_seed(config.seed)
    on_gpu = accelerator == "cuda" and config.trainer.accelerator is not Accelerator.cpu
    model = torch.nn.Module.to(task.build(), "cuda" if on_gpu else "cpu").eval()
    measured, told = measure(task, model, splits.validation)
    weight = int(splits.validation.weights.sum())
    print(f"{config.model.path}, not trained here")
    print(f"{task.sentence(measured)}, over {weight:,} {task.weight_unit}")
    for entry in told:
        right = f"\n  target  {entry['expected']}" if "expected" in entry else ""
        print(f"prompt  {entry['prompt']}{right}\n  answer  {entry['answer']}")
