"""How a run is continued: from which checkpoint, with which inputs, at which learning rate. Rank 0 decides for all
ranks.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from aitrain.checkpoint import store
from aitrain.checkpoint.store import Checkpoint
from aitrain.config import OPTION_OF, RunConfig
from aitrain.data.samples import Splits
from aitrain.dist.group import Group
from aitrain.errors import RecipeError
from aitrain.io import remove_leftovers
from aitrain.optim.schedule import learning_rate_factor
from aitrain.tasks.task import Task
from aitrain.trainer.facts import code_facts, refuse_difference
from aitrain.trainer.progress import Progress
from aitrain.trainer.resume_options import ResumeOptions
from aitrain.trainer.run_directory import RunDirectory

RATE_TOLERANCE = 0.01
"""A learning rate that jumps by more than this share, because the length of the run has changed, must be accepted by
the user.
"""


def tidy(directory: RunDirectory, config: RunConfig) -> None:
    """Remove and report what a killed process of this run left half-written.

    Args:
        directory: The run.
        config: Its configuration.
    """
    removed = [
        path
        for folder in (directory.path, directory.checkpoints(config))
        for path in remove_leftovers(folder, exclusive=True)
    ]
    if removed:
        names = ", ".join(path.name for path in removed)
        print(f"removed leftovers of an interrupted write in {directory.path}: {names}", file=sys.stderr)


def starting_point(
    directory: RunDirectory, config: RunConfig, group: Group, options: ResumeOptions
) -> Checkpoint | None:
    """Return the checkpoint that a run continues from, or None when it has none yet; the same on every rank.

    Args:
        directory: The run.
        config: Its configuration.
        group: The ranks.
        options: Which checkpoint.

    Raises:
        CheckpointError: All checkpoints are damaged, or the one that was asked for is, or is not there.
    """

    def find() -> tuple[str, int, dict[str, Any]] | None:
        folder = directory.checkpoints(config)
        tidy(directory, config)
        if options.checkpoint == "newest" and not any(store.scan(folder)):
            return None
        chosen = store.choose(folder, options.checkpoint)
        return str(chosen.path), chosen.step, chosen.manifest

    found = group.by_first(find)
    return None if found is None else Checkpoint(Path(found[0]), found[1], found[2])


def set_aside_later(directory: RunDirectory, config: RunConfig, chosen: Checkpoint, options: ResumeOptions) -> None:
    """Rename the checkpoints after the one that a run continues from; rank 0 calls this once the run is known to be
    valid.

    Args:
        directory: The run.
        config: Its configuration.
        chosen: Where it continues.
        options: Whether the user has chosen it; else later ones are damaged.
    """
    why = "damaged" if options.checkpoint == "newest" else "superseded"
    for path in store.set_aside(directory.checkpoints(config), chosen.step, why):
        print(f"continuing from step {chosen.step}; a later checkpoint was renamed to {path.name}", file=sys.stderr)


def refuse_changed_rate(config: RunConfig, progress: Progress, steps: int, options: ResumeOptions) -> None:
    """Refuse a length that makes the learning rate jump, unless the user accepts it.

    Args:
        config: The continued run.
        progress: How far it is, and how long it was to be.
        steps: How long it is to be now.
        options: What the user says about it.

    Raises:
        RecipeError: The rate of the next step differs by more than `RATE_TOLERANCE`.
    """
    before_steps = progress.total_steps
    if before_steps in (None, steps) or options.changed_rate:
        return
    assert before_steps is not None, "compared with None above"
    before, after = (
        config.optim.lr * learning_rate_factor(config.schedule, progress.step, length)
        for length in (before_steps, steps)
    )
    if abs(after - before) <= RATE_TOLERANCE * max(before, after):
        return
    raise RecipeError(
        f"with {steps} steps instead of {before_steps} (trainer.max_steps, trainer.max_epochs), "
        f"schedule={OPTION_OF[type(config.schedule)]} gives step {progress.step + 1} the learning rate {after:.3g} "
        f"instead of {before:.3g}: to accept it, add --changed-rate to `aitrain resume`; otherwise keep the length"
    )


def compare_inputs(
    directory: RunDirectory,
    task: Task,
    splits: Splits,
    resume: Checkpoint | None,
    group: Group,
    options: ResumeOptions,
) -> dict[str, Any]:
    """Compare model and data with those at the start of the run, and record them; the same on every rank.

    Args:
        directory: The run.
        task: What is trained.
        splits: The samples.
        resume: The checkpoint it continues from.
        group: The ranks.
        options: Whether changes are accepted.

    Returns:
        Today's facts.

    Raises:
        RecipeError: They differ, and the user has not accepted that.
    """

    def find() -> dict[str, Any]:
        config = task.config
        now = task.facts() | code_facts(config) | {"data": splits.fingerprint}
        then = (resume.state.get("facts") if resume else None) or directory.facts()
        if not options.changed_inputs:
            refuse_difference(then, now, config, directory.path)
        if directory.facts() != now:
            directory.freeze(config, now)
        return now

    facts: dict[str, Any] = group.by_first(find)
    return facts
