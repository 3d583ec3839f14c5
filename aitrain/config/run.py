"""Keys of the group `run`: name and directory of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Purpose(Enum):
    """What a trained model is for."""

    research = "research"
    commercial = "commercial"


SWEEP = "sweep.json"
"""File in the folder of a sweep: the words in which its runs differ, in the order of their numbers."""


@dataclass
class Run:
    """Name and place of one run."""

    name: str | None = None
    """Name of the run; `null` = the recipe's file name."""

    dir: str | None = None
    """Run directory; must not exist yet. `null` = `runs/<name>-<time>`, chosen once and kept across restarts."""

    purpose: Purpose | None = None
    """What the trained model is for: `research` or `commercial`. A base model whose licence forbids that is then
    refused; `null` = not stated, and the licence is only shown.
    """

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        if self.name is not None and (not self.name.strip() or "/" in self.name):
            yield f"run.name={self.name!r} must be a plain name without '/': write for instance run.name=my-first-run"
