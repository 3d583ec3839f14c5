"""Summary of prepared data: what was read, what is trained, what was left out, where and why."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_SHOWN = 5
_QUANTILES = (0, 10, 50, 90, 99, 100)


@dataclass
class Places:
    """Number of occurrences, and the places of the first ones."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, where: str) -> None:
        """Count an occurrence.

        Args:
            where: Place of the record.
        """
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(where)

    def __str__(self) -> str:
        return ", ".join(self.first) + (", ..." if self.count > len(self.first) else "")


@dataclass
class SourceReport:
    """Summary of one data file."""

    file: str
    sha256: str = ""
    """Checksum of the file."""

    records: int = 0
    """Records (or documents) read."""

    sequences: int = 0
    """Token sequences kept."""

    tokens: int = 0
    trained_tokens: int = 0
    """Tokens with loss; the first of a sequence never has one."""

    dropped: dict[str, Places] = field(default_factory=dict)
    """Reason -> records left out."""

    truncated: Places = field(default_factory=Places)
    """Records cut at `data.sequence_tokens`."""

    unused: dict[str, Places] = field(default_factory=dict)
    """Unused field -> records that have it."""

    left_out: Places = field(default_factory=Places)
    """Records of which the chat template leaves something out, accepted by the recipe."""

    longest_tokens: int = 0
    """Length of the longest record before anything was cut; of one that is far too long, the least it can have."""

    longest_at: str = ""
    length_quantiles: dict[str, int] = field(default_factory=dict)
    """Lengths of the kept sequences: percent -> tokens."""

    def drop(self, reason: str, where: str) -> None:
        """Count a record that is left out.

        Args:
            reason: Why, as a user reads it.
            where: Place of the record.
        """
        self.dropped.setdefault(reason, Places()).add(where)

    def see(self, tokens: int, where: str) -> None:
        """Count a record that was read.

        Args:
            tokens: Its length before anything is cut.
            where: Place of the record.
        """
        self.records += 1
        if tokens > self.longest_tokens:
            self.longest_tokens, self.longest_at = tokens, where

    def measure(self, lengths: npt.NDArray[np.int64], trained_counts: npt.NDArray[np.int64]) -> None:
        """Fill in what is kept.

        Args:
            lengths: Tokens of each kept sequence, shape (N,).
            trained_counts: Trained tokens of each, shape (N,).
        """
        self.sequences = len(lengths)
        self.tokens = int(lengths.sum())
        self.trained_tokens = int(trained_counts.sum())
        if len(lengths):
            values = np.percentile(lengths, _QUANTILES, method="nearest")
            self.length_quantiles = {str(q): int(value) for q, value in zip(_QUANTILES, values, strict=True)}

    def lines(self) -> list[str]:
        """Write the account for people, one fact per line."""
        share = 100 * self.trained_tokens / max(1, self.tokens)
        spread = ", ".join(f"{percent} %: {length}" for percent, length in self.length_quantiles.items())
        lines = [
            f"{self.file}: {self.records:,} records, {self.sequences:,} sequences, {self.tokens:,} tokens, "
            f"{self.trained_tokens:,} trained ({share:.1f} %)",
            f"  tokens per sequence: {spread}; longest record {self.longest_tokens:,} ({self.longest_at})",
        ]
        if self.truncated.count:
            lines.append(f"  truncated: {self.truncated.count:,} ({self.truncated})")
        if self.left_out.count:
            lines.append(f"  partly left out by the chat template: {self.left_out.count:,} ({self.left_out})")
        lines += [f"  dropped: {places.count:,} {reason} ({places})" for reason, places in self.dropped.items()]
        lines += [
            f"  not used: {name} in {places.count:,} {'record' if places.count == 1 else 'records'}"
            for name, places in self.unused.items()
        ]
        return lines

    def save(self, path: Path) -> None:
        """Write the summary as JSON.

        Args:
            path: File to write.
        """
        path.write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> SourceReport:
        """Read a summary.

        Args:
            path: File that `save` wrote.
        """
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in ("truncated", "left_out"):
            values[key] = Places(**values[key])
        for key in ("dropped", "unused"):
            values[key] = {name: Places(**places) for name, places in values[key].items()}
        return cls(**values)


@dataclass
class Report:
    """Summary of a run's data."""

    sources: list[SourceReport]
    """The training file, then the validation file where one is named."""

    train_sequences: int
    validation_sequences: int
    overlap: int = 0
    """Held-out samples that are also training samples."""

    def text(self) -> str:
        """Write the account for people."""
        lines = [line for source in self.sources for line in source.lines()]
        lines.append(f"training on {self.train_sequences:,} sequences, {self.validation_sequences:,} held out")
        if self.overlap:
            verb = "is a training sample" if self.overlap == 1 else "are training samples"
            lines.append(f"  of the held-out samples, {self.overlap:,} {verb} too")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Give the account as plain values, for JSON."""
        return asdict(self)
