"""Predictions of a trained model for the records of a file: one JSON object per line."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from aitrain.checkpoint import store
from aitrain.config.data import Readable
from aitrain.errors import AitrainError, DataError
from aitrain.io import write_text
from aitrain.recipe import amend
from aitrain.tasks.data_files import source_of
from aitrain.tasks.registry import task_of
from aitrain.trainer.evaluation import model_of
from aitrain.trainer.facts import code_facts, refuse_difference
from aitrain.trainer.run_directory import RunDirectory


def predict(
    run: Path,
    file: Path,
    to: Path | None,
    checkpoint: str,
    changed_inputs: bool = False,
    overrides: Sequence[str] = (),
) -> None:
    """Print or write the predictions of a run's model for the records of a file.

    Args:
        run: The run directory.
        file: Records as in training; the targets may be absent.
        to: File to write, `.jsonl`; None = standard output.
        checkpoint: `newest`, `best` or a step.
        changed_inputs: Predict although the base model has changed since the run started.
        overrides: How the file is read, where it differs from the training data.

    Raises:
        DataError: The file is not there, or a record cannot be used.
        AitrainError: `to` exists already, or a key cannot be given here.
    """
    if not file.exists():
        raise DataError(f"{file} does not exist: name a file of records like those of training")
    if to is not None and to.exists():
        raise AitrainError(f"--to {to} exists already: name a new file, nothing is overwritten")
    directory = RunDirectory.open(run)
    config = directory.config()
    chosen = store.choose(directory.checkpoints(config), checkpoint)
    then = {} if changed_inputs else chosen.state.get("facts") or directory.facts()
    config = amend(config, overrides, for_file=True)
    task = task_of(config)
    refuse_difference(then, task.facts() | code_facts(config), config, directory.path)
    model = model_of(task, chosen, directory)
    device = next(model.parameters()).device
    if isinstance(config.data, Readable):
        for note in source_of(file, config.data).notes():
            print(note, file=sys.stderr)
    with torch.no_grad():
        lines = (json.dumps(said, ensure_ascii=False) for said in task.predictions(model, file, device))
        if to is None:
            for line in lines:
                print(line)
            return
        written = list(lines)
    write_text(to, "".join(f"{line}\n" for line in written))
    print(f"{to}: {len(written):,} records", file=sys.stderr)
