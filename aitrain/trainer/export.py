"""From a run's checkpoint to folders that plain transformers (and peft) load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aitrain.checkpoint import store
from aitrain.config import RunConfig
from aitrain.config.model import ModelKind
from aitrain.errors import Interrupted, RecipeError
from aitrain.io import discard, writing
from aitrain.trainer.progress import Progress
from aitrain.trainer.run_directory import RunDirectory


@dataclass(frozen=True)
class Wanted:
    """What to export, and how."""

    merge: bool = True
    """Merge the adapter into the model's weights; else only the adapter is written."""

    checkpoint: str = "newest"
    """`newest`, `best` or a step."""

    flat: bool = False
    """Write the requested part into the folder itself; else `model` and `adapter` inside it."""

    replace: bool = False
    """Replace an existing folder; it is removed once the new one is complete."""

    changed_inputs: bool = False
    """Export although the base model has changed since the run started."""


def export_gguf(run: Path, to: Path, kind: str, wanted: Wanted) -> None:
    """Write a run's model as one GGUF file.

    Args:
        run: The run directory.
        to: File to make.
        kind: Number format of the matrices: `f32`, `f16`, `bf16` or `q8_0`.
        wanted: Of which checkpoint.

    Raises:
        RecipeError: `to` exists already, or the run trained no language model.
        ModelError: The model has no counterpart in GGUF.
    """
    from aitrain.models.gguf_writer import GgufType, write_gguf
    from aitrain.models.licence import licence_of

    config = RunDirectory.open(run).config()
    if config.task.model_kind is not ModelKind.causal:
        raise RecipeError(f"--to {to}: GGUF files are for language models: name a folder instead")
    folder = to.with_name(f"{to.name}.export")
    if folder.exists():
        discard(folder)
    try:
        export(run, folder, wanted)
        with writing(f"--to {to}", "free space there, or name another file"):
            write_gguf(folder, to, GgufType[kind], config.run.name or run.name, licence_of(folder))
    finally:
        if folder.exists():
            discard(folder)


def export(run: Path, to: Path, wanted: Wanted, stop: Callable[[], bool] = lambda: False) -> None:
    """Write a Hugging Face folder of a run's model.

    Args:
        run: The run directory.
        to: Folder to make.
        wanted: What and how.
        stop: Whether to stop early; checked between the parts of the work.

    Raises:
        RecipeError: `to` exists already, or the base model has changed.
        CheckpointError: There is no such checkpoint.
        Interrupted: It was stopped; nothing is left behind.
    """
    from aitrain.tasks.registry import task_of
    from aitrain.tasks.task import ExportJob
    from aitrain.trainer.facts import code_facts, refuse_difference

    directory = RunDirectory.open(run)
    config: RunConfig = directory.config()
    if to.exists() and not wanted.replace:
        raise RecipeError(f"--to {to} exists already: name a new folder, nothing is overwritten")
    chosen = store.choose(directory.checkpoints(config), wanted.checkpoint)
    progress = Progress.from_state(chosen.state)
    task = task_of(config)
    if not wanted.changed_inputs:
        then = chosen.state.get("facts") or directory.facts()
        refuse_difference(then, task.facts() | code_facts(config), config, directory.path)
    weights = {name: chosen.read("weights", name) for name in chosen.names("weights")}
    measured = list(progress.validation.values())

    def go_on() -> None:
        if stop():
            raise Interrupted(f"the export of {run} was interrupted")

    place = to.with_name(f"{to.name}.new") if to.exists() else to
    if place != to and place.exists():
        discard(place)
    job = ExportJob(
        to=place,
        run=config.run.name or run.name,
        merge=wanted.merge,
        flat=wanted.flat,
        step=chosen.step,
        units=progress.units,
        before=measured[0] if measured else None,
        after=measured[-1] if measured else None,
        go_on=go_on,
    )
    task.recall(directory.learned(chosen.step, chosen.state.get("task", {})))
    task.export(weights, job)
    if place != to:
        discard(to)
        place.rename(to)
