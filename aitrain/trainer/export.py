"""From a run's checkpoint to folders that plain transformers (and peft) load."""

from __future__ import annotations

from pathlib import Path

from aitrain.checkpoint import store
from aitrain.config import RunConfig
from aitrain.errors import RecipeError
from aitrain.trainer.run_directory import RunDirectory


def export(run: Path, to: Path, merge: bool, checkpoint: str) -> None:
    """Write a Hugging Face folder of a run's model.

    Args:
        run: The run directory.
        to: Folder to make: `to/model`, and `to/adapter` when the run trained one.
        merge: Merge the adapter into the model's weights; else only the adapter is written.
        checkpoint: `newest`, `best` or a step.

    Raises:
        RecipeError: `to` exists already.
        CheckpointError: There is no such checkpoint.
    """
    from aitrain.models.export import Card, export_folder

    directory = RunDirectory.open(run)
    config: RunConfig = directory.config()
    if to.exists():
        raise RecipeError(f"--to {to} exists already: name a new folder, nothing is overwritten")
    chosen = store.choose(directory.checkpoints(config), checkpoint)
    weights = {name: chosen.read("weights", name) for name in chosen.names("weights")}
    state = chosen.state
    losses = list(state.get("validation", {}).values())
    card = Card(
        run=config.run.name or run.name,
        step=chosen.step,
        tokens=state["tokens"],
        loss_before=losses[0] if losses else None,
        loss_after=losses[-1] if losses else None,
    )
    export_folder(config, weights, to, merge, card)
