"""Summary of a table of series: steps, series, missing values."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aitrain.data.time_grid import Grid

FILE = "account.json"


@dataclass
class SeriesAccount:
    """Contents of one table."""

    file: str
    sha256: str
    rows: int
    series: int
    steps: int
    missing: int
    """Steps without a value, between the first and the last of their series."""

    later: int
    """Steps after the last value, of which only the known columns are used."""

    seconds: int
    months: int
    columns: int
    """Known columns, those of the calendar not counted."""

    empty: list[str] = field(default_factory=list)
    """Series without any value, which are skipped."""

    train: int = 0
    validation: int = 0
    others: list[SeriesAccount] = field(default_factory=list)

    @property
    def grid(self) -> Grid:
        """The steps."""
        return Grid(self.seconds, self.months)

    def save(self, folder: Path) -> None:
        """Write the summary as JSON.

        Args:
            folder: Folder to write to.
        """
        (folder / FILE).write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> SeriesAccount:
        """Read a summary.

        Args:
            folder: Where `save` wrote it.
        """
        return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))

    def fingerprint(self) -> dict[str, Any]:
        """Return plain values that identify this data; see `Splits`."""
        return {
            key: {"file": each.file, "sha256": each.sha256, "samples": each.series, "units": each.steps}
            for key, each in zip(("train", "validation"), [self, *self.others], strict=False)
        }

    def lines(self) -> list[str]:
        """Return the account of this table, one fact per line."""
        known = f", {self.columns} known columns" if self.columns else ""
        lines = [f"{self.file}: {self.rows:,} rows, {self.series:,} series, steps of one {self.grid.name}{known}"]
        if self.missing:
            lines.append(f"  without a value, masked: {self.missing:,} of {self.steps:,} steps")
        if self.empty:
            lines.append(f"  without any value, skipped: {len(self.empty):,} series, first {self.empty[0]!r}")
        if self.later:
            lines.append(f"  after the last value, known columns only: {self.later:,} steps")
        return lines

    def text(self) -> str:
        """Return the summary as text."""
        lines = [line for each in (self, *self.others) for line in each.lines()]
        return "\n".join([*lines, f"training on {self.train:,} windows, {self.validation:,} held out"])
