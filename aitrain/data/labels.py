"""Records with labels: read, checked together, and split so that every class is in both parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aitrain.config.data import Data, Labelled
from aitrain.data.column_names import missing_column
from aitrain.data.faults import RecordFaults
from aitrain.data.order import sample_indices
from aitrain.data.records import read_records
from aitrain.data.samples import Integers
from aitrain.data.source import Source
from aitrain.errors import DataError

_HOLD_OUT = 0x5EED_0F_4E1D
"""Separates the random choice of held-out samples from the training order."""


@dataclass
class LabelledText:
    """Contents of one file."""

    texts: list[str] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    """Names of the labels of each text: one, or any number where a text may have several."""

    places: list[str] = field(default_factory=list)
    """Place of each record."""


def read_labelled(source: Source, data: Labelled, several: bool, known: Sequence[str] | None = None) -> LabelledText:
    """Read the records of a file; all faults are reported together.

    Args:
        source: The data files.
        data: Which fields hold text and label.
        several: Whether a text may have several labels.
        known: Labels that training has; None = this is the training file.

    Raises:
        DataError: Records lack a text or a label, a label is not known, or a class has one example; each with its line.
    """
    found, faults = LabelledText(), RecordFaults()
    for where, record in read_records(source, data.text_field):
        try:
            if isinstance(record, DataError):
                raise record
            labels = labels_of(record, data.label_field, several, where, known)
            if not record[data.text_field].strip():
                raise DataError(f"{where}: {data.text_field!r} is empty: write a text, or remove the record")
        except DataError as fault:
            faults.add(fault)
            continue
        found.texts.append(record[data.text_field])
        found.labels.append(labels)
        found.places.append(where)
    faults.refuse(*(class_faults(found.labels, found.places, source.name) if known is None else ()))
    return found


def labels_of(
    record: dict[str, Any], field: str, several: bool, where: str, known: Sequence[str] | None = None
) -> list[str]:
    """Return the labels of a record.

    Args:
        record: The record.
        field: Key that holds them.
        several: Whether there may be several, or none.
        where: Place of the record.
        known: Labels that training has; None = any.

    Raises:
        DataError: There is no label, or it is none of the known ones.
    """
    if field not in record:
        raise missing_column(record, field, where, "data.label_field")
    labels = _listed_labels(record[field], field, several, where)
    strange = [label for label in labels if known is not None and label not in known]
    if strange:
        raise DataError(
            f"{where}: label {strange[0]!r} is not among those of the training data ({_listed(known or [])}): "
            "fix it, or add examples of it to data.path"
        )
    return labels


def _listed_labels(value: Any, field: str, several: bool, where: str) -> list[str]:
    if several:
        values = value if isinstance(value, list) else [] if value in (None, "") else str(value).split("|")
        return [str(each).strip() for each in values]
    if isinstance(value, (list, dict)) or value is None or str(value).strip() == "":
        raise DataError(
            f"{where}: {field!r} is {value!r}, not one label: write a word or a number, or add "
            "task.multi_label=true where a text may have several"
        )
    return [str(value).strip()]


def class_faults(labels: Sequence[Sequence[str]], places: Sequence[str], file: str) -> Iterator[str]:
    """Yield what is wrong with the classes of training data, one sentence each.

    Args:
        labels: Labels of each sample.
        places: Place of each.
        file: Name of the file or folder.
    """
    counts = Counter(label for given in labels for label in given)
    if len(counts) < 2 and labels:
        yield f"{file}: only one class ({_listed(list(counts))}): there is nothing to learn"
        return
    for label, count in sorted(counts.items()):
        if count == 1:
            at = next(place for place, given in zip(places, labels, strict=True) if label in given)
            yield f"{at}: class {label!r} has one example: give at least two, one to train on and one to evaluate on"


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(map(repr, labels[:8]))
    return shown + (f", ... {len(labels)} in all" if len(labels) > 8 else "")


def held_out(strata: Sequence[Any], data: Data, seed: int) -> Integers | None:
    """Choose the samples to hold out of the training file, the same share of each class; None = none.

    Args:
        strata: Class of each sample.
        data: How many.
        seed: Chooses them.

    Returns:
        Numbers of the samples in order, shape (K,).

    Raises:
        DataError: As many shall be held out as there are.
    """
    size = len(strata)
    count = data.held_out_samples(size)
    if count is None:
        return None
    if data.validation_samples is not None and count >= size:
        raise DataError(f"data.validation_samples={count} leaves nothing to train on: {size} samples")
    share = data.validation_share if data.validation_samples is None else count / size
    assert share is not None, "one of the two is given"
    order = sample_indices(seed ^ _HOLD_OUT, np.arange(size, dtype=np.int64), size, shuffle=True)
    groups: dict[Any, list[int]] = {}
    for index in order:
        groups.setdefault(strata[int(index)], []).append(int(index))
    chosen = []
    for members in groups.values():
        count = min(len(members) - 1, max(1, round(share * len(members)))) if len(members) > 1 else 0
        chosen += members[:count]
    return np.sort(np.array(chosen, dtype=np.int64))
