"""Ragged columns on disk: storage of samples of any kind, written once and memory-mapped by every rank."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from aitrain.data.samples import Integers
from aitrain.data.token_set import GrowingArray

INDEX = "columns.json"


@dataclass(frozen=True, eq=False)
class Columns:
    """Records whose fields are arrays of one dimension and of any length; `rows` selects the ones that belong."""

    values: dict[str, npt.NDArray[Any]]
    """Name of a field -> the values of all records, one record after the other."""

    offsets: dict[str, Integers]
    """Name of a field -> where each record begins in `values`, and the end; shape (S + 1,)."""

    rows: Integers
    """Stored records that belong, shape (N,)."""

    @classmethod
    def open(cls, folder: Path) -> Columns:
        """Map what `ColumnWriter` wrote.

        Args:
            folder: Its folder.
        """
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        values, offsets = (
            {name: np.load(folder / f"{name}.{end}.npy", mmap_mode="r", allow_pickle=False) for name in names}
            for end in ("values", "offsets")
        )
        return cls(values, offsets, np.arange(len(offsets[names[0]]) - 1, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, name: str, index: int) -> npt.NDArray[Any]:
        """Return one field of one record.

        Args:
            name: Name of the field.
            index: Number of the record, 0 to N - 1.
        """
        row, offsets = self.rows[index], self.offsets[name]
        return self.values[name][offsets[row] : offsets[row + 1]]

    def single(self, name: str) -> npt.NDArray[Any]:
        """Return a field that holds one number per record, shape (N,).

        Args:
            name: Name of the field.
        """
        return np.asarray(self.values[name])[np.asarray(self.offsets[name])[self.rows]]

    def lengths(self, name: str) -> Integers:
        """Return how many values each record has in a field, shape (N,).

        Args:
            name: Name of the field.
        """
        return np.diff(self.offsets[name])[self.rows]

    def select(self, positions: Integers) -> Columns:
        """Select records without copying.

        Args:
            positions: Positions within these, shape (K,).
        """
        return Columns(self.values, self.offsets, self.rows[positions])


class ColumnWriter:
    """Writes records in a stream; memory does not grow with the data except for one offset per field and record.

    Args:
        folder: An empty folder.
        types: Name of a field -> type of its values.
    """

    def __init__(self, folder: Path, types: Mapping[str, npt.DTypeLike]) -> None:
        self._folder = folder
        self._arrays = {
            name: GrowingArray(folder / f"{name}.values.npy", np.dtype(kind)) for name, kind in types.items()
        }
        self._offsets: dict[str, list[int]] = {name: [0] for name in types}

    def add(self, **fields: Sequence[Any] | npt.NDArray[Any]) -> None:
        """Append one record.

        Args:
            fields: The values of every field.
        """
        assert fields.keys() == self._arrays.keys(), f"fields {sorted(fields)}, declared {sorted(self._arrays)}"
        for name, values in fields.items():
            self._arrays[name].extend(values)
            self._offsets[name].append(self._offsets[name][-1] + len(values))

    def __enter__(self) -> ColumnWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for array in self._arrays.values():
            array.close()
        for name, offsets in self._offsets.items():
            np.save(self._folder / f"{name}.offsets.npy", np.asarray(offsets, dtype=np.int64), allow_pickle=False)
        (self._folder / INDEX).write_text(json.dumps(list(self._arrays)), encoding="utf-8")
