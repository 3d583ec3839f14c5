"""The interface between data and training: what the trainer knows about samples of any kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Batch = dict[str, Any]
Integers = npt.NDArray[np.int64]


class Samples(Protocol):
    """Samples with numbers from 0, with the same numbers on every rank and after every restart."""

    def __len__(self) -> int:
        """Return N, the number of samples."""

    @property
    def weights(self) -> npt.NDArray[Any]:
        """Weight of each sample in the loss (trained tokens, images, pairs), `(N,)`."""

    @property
    def units(self) -> npt.NDArray[Any]:
        """Number of units of each sample (tokens, images, windows), `(N,)`, for throughput."""

    def collate(self, rows: Integers, size: int) -> Batch:
        """Collate samples into one batch.

        Args:
            rows: Numbers of the samples, at most `size`; fewer, or none, at the end of the run's samples.
            size: Rows of the batch. Rows without a sample must change neither loss nor metrics.
        """


class Account(Protocol):
    """Summary of what was read."""

    def text(self) -> str:
        """Return it, one fact per line."""


@dataclass(frozen=True)
class Splits:
    """What a run is trained and measured on."""

    train: Samples
    validation: Samples | None
    report: Account
    fingerprint: dict[str, Any]
    """Plain values that identify this data: `train` and optionally `validation`, each with `file`, `sha256`,
    `samples` and `units`. Kept in every checkpoint; a resumed run is refused when they differ."""
