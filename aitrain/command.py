"""The type of a command, and arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aitrain.errors import AitrainError


@dataclass(frozen=True)
class Command:
    """One command of the command line."""

    does: str
    """What it does, in one line."""

    arguments: Callable[[argparse.ArgumentParser], None]
    """Declares its arguments."""

    run: Callable[[argparse.Namespace], int]
    """Runs it and returns the exit code."""

    is_watched: bool = False
    """Whether each rank that srun starts runs as the child of a supervisor."""

    passes_on: bool = False
    """Whether the remaining arguments are parsed elsewhere."""


def takes_run(parser: argparse.ArgumentParser) -> None:
    """Declare a run directory.

    Args:
        parser: Of the command.
    """
    parser.add_argument("run", metavar="RUN", type=Path, help="run directory")


def run_directory(path: Path) -> Path:
    """Return a run directory, or refuse a folder that is not one.

    Args:
        path: What the user gave.

    Raises:
        AitrainError: There is no run.
    """
    if (path / "run.yaml").is_file():
        return path
    why = "is not a run directory (no run.yaml)" if path.is_dir() else "does not exist"
    raise AitrainError(f"{path} {why}: `aitrain runs` lists the runs here")


def takes_state(parser: argparse.ArgumentParser) -> None:
    """Declare which checkpoint of a run, and whether its inputs may have changed.

    Args:
        parser: Of the command.
    """
    parser.add_argument("--checkpoint", metavar="STEP|best|newest", default="newest", help="default: newest")
    parser.add_argument(
        "--changed-inputs",
        action="store_true",
        help="continue although the model or the data has changed since the run started",
    )


def checkpoint_of(args: argparse.Namespace) -> str:
    """Return the word that chooses a checkpoint.

    Args:
        args: Words of the command.

    Raises:
        AitrainError: It is none.
    """
    word = str(args.checkpoint)
    if word not in ("best", "newest") and not word.isdigit():
        raise AitrainError(f"--checkpoint {word} is not a checkpoint: write a step, best or newest")
    return word
