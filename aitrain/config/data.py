"""Keys of the group `data`: which records, how they become token sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class RecordFormat(Enum):
    """Shape of one record."""

    auto = "auto"
    messages = "messages"
    prompt_completion = "prompt_completion"
    alpaca = "alpaca"
    sharegpt = "sharegpt"


class OnFault(Enum):
    """What happens with a sample that breaks a rule."""

    refuse = "refuse"
    drop = "drop"


class OnTooLong(Enum):
    """What happens with a sample longer than `data.sequence_tokens`."""

    refuse = "refuse"
    drop = "drop"
    truncate = "truncate"


@dataclass
class Data:
    """Where the samples come from and how long they may be."""

    path: str = MISSING
    """File with the training data: `.jsonl`, `.jsonl.gz`, `.json`, `.parquet`, `.csv` (and `.txt` for plain text)."""

    validation_path: str | None = None
    """File with held-out data of the same kind; `null` = `data.validation_samples` are taken from `data.path`."""

    validation_samples: int | None = None
    """Samples held out of `data.path` for evaluation, chosen by `seed`; `null` = none. Not with `validation_path`."""

    sequence_tokens: int = 1024
    """Longest sequence in tokens. Memory grows with it."""

    shuffle: bool = True
    """Whether the order is a permutation drawn from `seed` anew each epoch; off = file order."""

    workers: int = 0
    """Loader processes per rank; 0 = batches are put together in the training process."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        if self.sequence_tokens < 2:
            rule = "must be at least 2 (one token to read, one to predict): try 1024"
            yield f"data.sequence_tokens={self.sequence_tokens} {rule}"
        if self.workers < 0:
            yield f"data.workers={self.workers} must be 0 or more"
        if self.validation_samples is not None and self.validation_samples < 1:
            yield f"data.validation_samples={self.validation_samples} must be at least 1, or null for none"
        if self.validation_path is not None and self.validation_samples is not None:
            yield (
                f"data.validation_samples={self.validation_samples} has no effect beside "
                f"data.validation_path={self.validation_path}: give one of the two"
            )


@dataclass
class Records(Data):
    """Conversations and instructions: one record per line or row."""

    format: RecordFormat = RecordFormat.auto
    """Shape of the records; `auto` looks at the keys of each record."""

    no_trained_tokens: OnFault = OnFault.refuse
    """A sample without any trained token: `refuse` the data, or `drop` it (counted and reported)."""

    too_long: OnTooLong = OnTooLong.refuse
    """A sample longer than `data.sequence_tokens`: `refuse`, `drop` or `truncate` at the end (counted and reported)."""


@dataclass
class Text(Data):
    """Plain text: documents are joined with the end-of-text token and cut into blocks of `data.sequence_tokens`."""

    text_field: str = "text"
    """Column or JSON key that holds the text; has no meaning for `.txt` files, where blank lines separate documents."""
