"""The account of prepared images: number per class, size, and what was skipped."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "account.json"


@dataclass
class ImageAccount:
    """Contents of one folder or table."""

    file: str
    sha256: str
    images: int = 0
    classes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Label -> images that have it."""

    shape: list[int] = field(default_factory=list)
    """Channels, height and width of every image as the model sees it."""

    others: list[str] = field(default_factory=list)
    """Files of the folder that are not images."""

    train: int = 0
    validation: int = 0
    overlap: int = 0
    """Held-out images that are also training images."""

    more: list[ImageAccount] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write the summary as JSON.

        Args:
            folder: Folder to write to.
        """
        (folder / FILE).write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ImageAccount:
        """Read a summary.

        Args:
            folder: Where `save` wrote it.
        """
        return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))

    def split(self, accounts: Sequence[ImageAccount], train: int, validation: int, overlap: int) -> ImageAccount:
        """Return this account with the sizes of the split.

        Args:
            accounts: Of all files, this one first.
            train: Images to train on.
            validation: Images held out.
            overlap: How many of those are also training images.
        """
        self.more, self.train, self.validation, self.overlap = list(accounts[1:]), train, validation, overlap
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Return plain values that identify this data; see `Splits`."""
        return {
            key: {"file": each.file, "sha256": each.sha256, "samples": each.images, "units": each.images}
            for key, each in zip(("train", "validation"), [self, *self.more], strict=False)
        }

    def lines(self) -> list[str]:
        """Return the account of this folder or table, one fact per line."""
        size = " x ".join(map(str, self.shape[1:]))
        space = self.images * math.prod(self.shape) / 1e6
        lines = [f"{self.file}: {self.images:,} images, kept as {size} pixels in the cache ({space:,.0f} MB)"]
        shown = sorted(self.counts.items(), key=lambda entry: -entry[1])
        more = f", ... {len(shown)} classes in all" if len(shown) > 12 else ""
        lines.append("  " + ", ".join(f"{name}: {count:,}" for name, count in shown[:12]) + more)
        if self.others:
            lines.append(f"  not images, skipped: {len(self.others):,} files, first {self.others[0]}")
        return lines

    def text(self) -> str:
        """Return the summary as text."""
        lines = [line for each in (self, *self.more) for line in each.lines()]
        same = f", {self.overlap:,} of them also in the training data" if self.overlap else ""
        return "\n".join([*lines, f"training on {self.train:,} images, {self.validation:,} held out{same}"])
