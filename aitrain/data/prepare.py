"""From data files to token sets: tokenised and masked once into a content-addressed cache, with an account of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aitrain.config.data import Data
from aitrain.config.task import Task
from aitrain.data.token_set import TokenSet

Progress = Callable[[int, int | None], None]
"""Called with records done and records in all, None where that is not known beforehand."""


@dataclass(frozen=True)
class Files:
    """Data files, resolved."""

    train: Path
    validation: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """What a run trains and is measured on."""

    train: TokenSet
    validation: TokenSet | None
    report: Any


def prepare(
    data: Data, task: Task, tokenizer: Any, cache: Path, seed: int, files: Files, progress: Progress | None = None
) -> Prepared:
    """Being written; the signature stands."""
    raise NotImplementedError
