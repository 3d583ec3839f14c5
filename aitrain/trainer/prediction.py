"""Predictions of a trained model for the records of a file: one JSON object per line."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from aitrain.checkpoint import store
from aitrain.config.data import Readable
from aitrain.data.spreadsheets import TEXT_SUFFIXES, delimiter_of
from aitrain.errors import AitrainError, DataError
from aitrain.io import write_bytes, write_text
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
        to: File to write, JSON Lines, or a table if its name ends with `.csv`; None = standard output.
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
    config = amend(directory.config(), overrides, for_file=True)
    chosen = store.choose(directory.checkpoints(config), checkpoint)
    then = {} if changed_inputs else chosen.state.get("facts") or directory.facts()
    task = task_of(config)
    refuse_difference(then, task.facts() | code_facts(config), config, directory.path)
    model = model_of(task, chosen, directory)
    device = next(model.parameters()).device
    if isinstance(config.data, Readable):
        for note in source_of(file, config.data).notes():
            print(note, file=sys.stderr)
    with torch.no_grad():
        found = task.predictions(model, file, device)
        if to is None:
            for each in found:
                print(_line(each))
            return
        records = list(found)
    if to.suffix.lower() == ".csv":
        delimiter = ","
        if isinstance(config.data, Readable) and file.name.lower().endswith(TEXT_SUFFIXES):
            delimiter = delimiter_of(file, config.data.encoding, config.data.delimiter)
        write_bytes(to, _table(records, delimiter).encode("utf-8-sig"))  # with the mark by which Excel knows UTF-8
    else:
        write_text(to, "".join(f"{_line(each)}\n" for each in records))
    print(f"{to}: {len(records):,} record{'s' * (len(records) != 1)}", file=sys.stderr)


def _line(record: Any) -> str:
    return json.dumps(record, ensure_ascii=False)


def _table(records: Sequence[dict[str, Any]], delimiter: str) -> str:
    """Return records as a table: a column for each value, also of the dictionaries in them; lists as JSON.

    Numbers get a decimal comma where semicolons separate the columns: spreadsheets expect both or neither.
    """
    rows = [dict(_cells(record)) for record in records]
    if delimiter == ";":
        rows = [{k: str(v).replace(".", ",") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), delimiter=delimiter, restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cells(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _cells(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _line(value) if isinstance(value, list) else value
