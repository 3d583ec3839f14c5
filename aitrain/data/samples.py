"""The seam between data and training: what the trainer knows of samples, whatever they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Batch = dict[str, Any]
Integers = npt.NDArray[np.int64]


class Samples(Protocol):
    """Samples with numbers from 0, the same ones under the same numbers on every rank and after every restart."""

    def __len__(self) -> int:
        """Return N, the number of samples."""

    @property
    def weights(self) -> npt.NDArray[Any]:
        """What each sample adds to the number that the loss is divided by (trained tokens, images, pairs), `(N,)`."""

    @property
    def units(self) -> npt.NDArray[Any]:
        """How much of the task's unit each sample holds (tokens, images, windows), `(N,)`: what throughput counts."""

    def collate(self, rows: Integers, size: int) -> Batch:
        """Put samples into one batch.

        Args:
            rows: Numbers of the samples, at most `size`; fewer, even none, where the run's samples end.
            size: Rows of the batch. Rows without a sample must change neither loss nor metrics.
        """


class Account(Protocol):
    """What was read, for people."""

    def text(self) -> str:
        """Return it, one fact a line."""


@dataclass(frozen=True)
class Splits:
    """What a run is trained and measured on."""

    train: Samples
    validation: Samples | None
    report: Account
    fingerprint: dict[str, Any]
    """Plain values that tell this data from other data: `train` and perhaps `validation`, each with `file`, `sha256`,
    `samples` and `units`. Kept in every checkpoint; a run that goes on is refused when they differ."""
