"""Held-out samples are a fair share, and none of them is trained on unnoticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aitrain.config.data import Labelled
from aitrain.data.columns import Columns, ColumnWriter
from aitrain.data.splits import split
from aitrain.errors import DataError


def columns(folder: Path, texts: list[list[int]]) -> Columns:
    folder.mkdir()
    with ColumnWriter(folder, {"ids": np.int32, "marks": np.int32}) as writer:
        for number, ids in enumerate(texts):
            writer.add(ids=ids, marks=[number])
    return Columns.open(folder)


def test_the_same_share_of_every_class(tmp_path: Path) -> None:
    whole = columns(tmp_path / "a", [[number] for number in range(40)])
    strata = ["rare" if number % 10 == 0 else "common" for number in range(40)]
    train, held, same = split(whole, None, ["ids"], Labelled(path="x", validation_share=0.25), 0, strata)
    assert held is not None and (len(train), len(held), same) == (30, 10, 0)
    assert sum(strata[int(number)] == "rare" for number in held.single("marks")) == 1
    assert set(train.single("marks")) | set(held.single("marks")) == set(range(40))


def test_nothing_is_held_out_unasked(tmp_path: Path) -> None:
    whole = columns(tmp_path / "a", [[1], [2]])
    train, held, same = split(whole, None, ["ids"], Labelled(path="x"), 0)
    assert (len(train), held, same) == (2, None, 0)


def test_equal_samples_on_both_sides_are_counted_and_refused(tmp_path: Path) -> None:
    train = columns(tmp_path / "a", [[1, 2], [3], [4]])
    held = columns(tmp_path / "b", [[1, 2], [1], [2, 3], [4, 4], *([5, number] for number in range(6))])
    data = Labelled(path="x", validation_path="y")
    *_, same = split(train, held, ["ids"], data, 0)
    assert same == 1
    with pytest.raises(
        DataError, match=r"1 of 10 held-out samples are also training samples, .* data.max_overlap=0.1$"
    ):
        split(train, held, ["ids"], Labelled(path="x", validation_path="y", max_overlap=0.05), 0)
    *_, same = split(train, held, ["ids", "marks"], data, 0)
    assert same == 1, "both fields are the same: number 0 of each"
