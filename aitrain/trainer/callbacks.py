"""Additional callbacks: those of the user's files, and torch's profiler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch

from aitrain.errors import RecipeError
from aitrain.io.user_code import load_class

if TYPE_CHECKING:
    from aitrain.trainer.training_callback import Session


def user_callbacks(words: list[str]) -> list[pl.Callback]:
    """Build the callbacks of the user's files.

    Args:
        words: `FILE.py:CLASS`, as in `trainer.callbacks`.

    Raises:
        RecipeError: There is no such class, it is not a callback, or it cannot be constructed without arguments.
    """
    made = []
    for word in words:
        file, _, name = word.rpartition(":")
        found = load_class(file, name, "trainer.callbacks")
        if not issubclass(found, pl.Callback):
            raise RecipeError(
                f"trainer.callbacks: {word} is not a callback: make it inherit from lightning.pytorch.Callback"
            )
        try:
            made.append(found())
        except TypeError as error:
            raise RecipeError(f"trainer.callbacks: {word} is made without arguments, but {error}") from error
    return made


def own_callbacks(session: Session) -> list[pl.Callback]:
    """Return the callbacks that run in addition to our own.

    Args:
        session: State shared by the parts.

    Raises:
        RecipeError: A class of the user's cannot be used.
    """
    config = session.config
    made = user_callbacks(config.trainer.callbacks)
    if config.trainer.profile_steps:
        first, last = config.trainer.profile_steps
        file = session.directory.path / "profile" / f"rank-{session.group.ranks.rank}-steps-{first}-{last}.json.gz"
        made.append(Profile(session, first, last, file))
    return made


class Profile(pl.Callback):
    """Records some optimizer steps with torch's profiler.

    Args:
        session: State shared by the parts.
        first: First step that is recorded, from 1.
        last: Last one.
        file: Where the trace goes.
    """

    def __init__(self, session: Session, first: int, last: int, file: Path) -> None:
        self.session, self.first, self.last, self.file = session, first, last, file
        self.profiler: torch.profiler.profile | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start before the first micro-batch of the first step.

        Args:
            trainer: Lightning's trainer.
            pl_module: The module.
            batch: The micro-batch.
            batch_idx: Its number.
        """
        if self.profiler is None and self.session.progress.step == self.first - 1 and not self.file.exists():
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if trainer.strategy.root_device.type == "cuda":
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self.profiler = torch.profiler.profile(activities=kinds, record_shapes=True)
            self.profiler.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop after the last step, or when the run ends before it.

        Args:
            trainer: Lightning's trainer.
            pl_module: The module.
            outputs: Not used.
            batch: The micro-batch.
            batch_idx: Its number.
        """
        done = self.session.progress.step
        if self.profiler is not None and (done >= min(self.last, self.session.total_steps) or trainer.should_stop):
            self.profiler.stop()
            self.file.parent.mkdir(exist_ok=True)
            self.profiler.export_chrome_trace(str(self.file))
            self.profiler = None
            self.session.display.say(f"profile of steps {self.first} to {done}: {self.file}")
