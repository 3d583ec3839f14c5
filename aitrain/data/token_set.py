"""Token sequences on disk: flat memory-mapped arrays, written once in a stream and read by every rank."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

DIGEST_BYTES = 12
"""Size of a checksum to find equal sequences."""

_NAMES = ("tokens", "trained", "offsets")


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Sequences of token ids with a mark on each trained token; `rows` selects the ones that belong."""

    tokens: npt.NDArray[np.int32]
    """All sequences one after the other, shape (T,)."""

    trained: npt.NDArray[np.bool_]
    """Whether the loss is taken on a token, shape (T,)."""

    offsets: npt.NDArray[np.int64]
    """Where each stored sequence begins, and T at the end, shape (S + 1,)."""

    rows: npt.NDArray[np.int64]
    """Stored sequences that belong to this set, shape (N,)."""

    @classmethod
    def open(cls, folder: Path) -> TokenSet:
        """Map the arrays of a folder that `TokenWriter` wrote.

        Args:
            folder: Folder with `tokens.npy`, `trained.npy` and `offsets.npy`.

        Returns:
            The set of all stored sequences.
        """
        tokens, trained, offsets = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _NAMES
        )
        return cls(tokens, trained, offsets, np.arange(len(offsets) - 1, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        row = self.rows[index]
        begin, end = self.offsets[row], self.offsets[row + 1]
        return self.tokens[begin:end], self.trained[begin:end]

    def select(self, positions: npt.NDArray[np.int64]) -> TokenSet:
        """Select sequences without copying.

        Args:
            positions: Positions within this set, shape (K,).

        Returns:
            A set of K sequences over the same arrays.
        """
        return TokenSet(self.tokens, self.trained, self.offsets, self.rows[positions])

    def digests(self) -> Iterator[bytes]:
        """Yield a checksum of each sequence, to find equal ones."""
        for index in range(len(self)):
            yield hashlib.blake2b(self[index][0].tobytes(), digest_size=DIGEST_BYTES).digest()

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sequence, shape (N,)."""
        return np.diff(self.offsets)[self.rows]

    @cached_property
    def trained_counts(self) -> npt.NDArray[np.int64]:
        """Trained tokens of each sequence, shape (N,); a sequence's first token is never one, nothing predicts it."""
        if not len(self.offsets) - 1:
            return np.zeros(0, dtype=np.int64)
        starts = np.asarray(self.offsets[:-1])
        whole = np.add.reduceat(self.trained, starts, dtype=np.int64)
        return (whole - self.trained[starts])[self.rows]


class TokenWriter:
    """Writes a token set in a stream; memory does not grow with the data except for one offset per sequence."""

    def __init__(self, folder: Path) -> None:
        self._tokens = GrowingArray(folder / "tokens.npy", np.dtype(np.int32))
        self._trained = GrowingArray(folder / "trained.npy", np.dtype(np.bool_))
        self._offsets_path = folder / "offsets.npy"
        self._offsets = [0]

    def add(self, ids: Sequence[int], trained: Sequence[bool]) -> None:
        """Append one sequence.

        Args:
            ids: Token ids, at least one.
            trained: Whether the loss is taken on each of them, same length.
        """
        assert 0 < len(ids) == len(trained), f"{len(ids)} ids, {len(trained)} marks"
        self._tokens.extend(ids)
        self._trained.extend(trained)
        self._offsets.append(self._offsets[-1] + len(ids))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tokens.close()
        self._trained.close()
        np.save(self._offsets_path, np.asarray(self._offsets, dtype=np.int64), allow_pickle=False)


class GrowingArray:
    """A one-dimensional .npy file whose length is written when it is closed."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 (open for as long as the writer)
        self._dtype = dtype
        self._length = 0
        self._header_bytes = self._write_header(self._file)

    def _write_header(self, file: BinaryIO) -> int:
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(file, header)
        return file.tell()

    def extend(self, values: Sequence[Any] | npt.NDArray[Any]) -> None:
        """Append values.

        Args:
            values: Of the array's type, or convertible to it.
        """
        self._file.write(np.asarray(values, dtype=self._dtype).tobytes())
        self._length += len(values)

    def close(self) -> None:
        """Write the length and close the file."""
        self._file.seek(0)
        # numpy pads the header for growth along the first axis, so the header written last is as long as the first.
        assert self._write_header(self._file) == self._header_bytes, "the .npy header changed its length"
        self._file.close()
