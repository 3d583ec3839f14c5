"""Summary of prepared texts: what was read, cut or left out, and the classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aitrain.config.data import Labelled, OnTooLong
from aitrain.data.report import Places
from aitrain.errors import DataError

FILE = "account.json"


class Tokenises(Protocol):
    """A tokenizer of texts."""

    sequence_tokens: int

    def tokenise(self, texts: Sequence[Any], cut: bool = True) -> list[list[int]]:
        """Return the token ids of texts."""


@dataclass
class TextAccount:
    """Contents of one file."""

    file: str
    sha256: str
    records: int
    texts: int = 0
    tokens: int = 0
    classes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Label -> texts that have it."""

    cut: Places = field(default_factory=Places)
    dropped: Places = field(default_factory=Places)
    train: int = 0
    validation: int = 0
    overlap: int = 0
    """Held-out texts that are also training texts."""

    others: list[TextAccount] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write the summary as JSON.

        Args:
            folder: Folder to write to.
        """
        (folder / FILE).write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TextAccount:
        """Read a summary.

        Args:
            folder: Where `save` wrote it.
        """
        values: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls(**values | {key: Places(**values[key]) for key in ("cut", "dropped")})

    def split(self, accounts: Sequence[TextAccount], train: int, validation: int, overlap: int = 0) -> TextAccount:
        """Return this account with the sizes of the split.

        Args:
            accounts: Of all files, this one first.
            train: Texts to train on.
            validation: Texts held out.
            overlap: How many of those are also training texts.
        """
        self.others, self.train, self.validation, self.overlap = list(accounts[1:]), train, validation, overlap
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Return plain values that identify this data; see `Splits`."""
        return {
            key: {"file": each.file, "sha256": each.sha256, "samples": each.texts, "units": each.tokens}
            for key, each in zip(("train", "validation"), [self, *self.others], strict=False)
        }

    def lines(self) -> list[str]:
        """Return the account of this file, one fact per line."""
        lines = [f"{self.file}: {self.records:,} records, {self.texts:,} texts, {self.tokens:,} tokens"]
        shown = sorted(self.counts.items(), key=lambda entry: -entry[1])
        if shown:
            more = f", ... {len(shown)} classes in all" if len(shown) > 12 else ""
            lines.append("  " + ", ".join(f"{name}: {count:,}" for name, count in shown[:12]) + more)
        if self.cut.count:
            lines.append(f"  cut at data.sequence_tokens: {self.cut.count:,} ({self.cut})")
        if self.dropped.count:
            lines.append(f"  dropped, too long: {self.dropped.count:,} ({self.dropped})")
        return lines

    def text(self) -> str:
        """Return the summary as text."""
        lines = [line for each in (self, *self.others) for line in each.lines()]
        same = f", {self.overlap:,} of them also in the training data" if self.overlap else ""
        return "\n".join([*lines, f"training on {self.train:,} texts, {self.validation:,} held out{same}"])


def kept_texts(
    task: Tokenises, texts: Sequence[Any], places: Sequence[str], data: Labelled, account: TextAccount
) -> list[tuple[int, list[int]]]:
    """Tokenise texts, and cut, drop or refuse what is too long.

    Args:
        task: Makes token ids.
        texts: Texts, or pairs of texts.
        places: Place of each.
        data: What to do with one that is too long.
        account: Summary to update.

    Returns:
        Number and token ids of each text that is kept.

    Raises:
        DataError: Texts are too long and `data.too_long=refuse`.
    """
    kept, refused, longest = [], Places(), 0
    for at, ids in enumerate(task.tokenise(texts, cut=False) if texts else []):
        long = len(ids) > task.sequence_tokens
        longest = max(longest, len(ids))
        if long and data.too_long is OnTooLong.drop:
            account.dropped.add(places[at])
            continue
        if long and data.too_long is OnTooLong.refuse:
            refused.add(places[at])
        if long:
            account.cut.add(places[at])
            ids = task.tokenise([texts[at]])[0]
        kept.append((at, ids))
        account.tokens += len(ids)
    account.texts = len(kept)
    if refused.count:
        raise DataError(
            f"{refused.count} of {len(texts)} texts are longer than data.sequence_tokens={task.sequence_tokens} "
            f"({refused}): write data.sequence_tokens={longest}, data.too_long=truncate or data.too_long=drop"
        )
    return kept
