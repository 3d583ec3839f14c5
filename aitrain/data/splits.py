"""Training and held-out samples: chosen the same way for every task, and kept apart."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from aitrain.config.data import Data
from aitrain.data.columns import Columns
from aitrain.data.labels import held_out
from aitrain.errors import DataError


def split(
    train: Columns, validation: Columns | None, given: Sequence[str], data: Data, seed: int, strata: Sequence[Any] = ()
) -> tuple[Columns, Columns | None, int]:
    """Hold samples out as the recipe says, and count those that are also training samples.

    Args:
        train: All samples of `data.path`.
        validation: Those of `data.validation_path`, where there is one.
        given: Fields that the model is given: samples with equal ones are the same sample.
        data: How many are held out, and how many may be the same.
        seed: Chooses them.
        strata: Class of each sample, `(N,)`: the same share of each is held out; empty = all are of one class.

    Returns:
        Training samples, held-out samples, and how many of the latter are training samples, too.

    Raises:
        DataError: Nothing is left to train on, or more held-out samples are training samples than the recipe allows.
    """
    rows = held_out(strata if len(strata) else [0] * len(train), data, seed)
    if rows is not None:
        train, validation = train.select(np.setdiff1d(np.arange(len(train)), rows)), train.select(rows)
    return train, validation, 0 if validation is None else overlap(train, validation, given, data)


def overlap(train: Columns, validation: Columns, given: Sequence[str], data: Data) -> int:
    """Count the held-out samples that are also training samples.

    Args:
        train: Training samples.
        validation: Held-out samples.
        given: Fields that the model is given: samples with equal ones are the same sample.
        data: How many may be the same.

    Raises:
        DataError: They are more than the recipe allows.
    """
    seen = {_digest(train, given, at) for at in range(len(train))}
    same = sum(_digest(validation, given, at) in seen for at in range(len(validation)))
    if same > data.max_overlap * len(validation):
        raise DataError(
            f"{same:,} of {len(validation):,} held-out samples are also training samples, so they would not "
            "measure what the model has learned: remove them from one of the two, or write "
            f"data.max_overlap={math.ceil(100 * same / len(validation)) / 100:g}"
        )
    return same


def _digest(columns: Columns, fields: Sequence[str], index: int) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in fields:
        values = columns.get(name, index)
        digest.update(len(values).to_bytes(8, "little") + values.tobytes())
    return digest.digest()
