"""Starts a run: it is checked once, frozen once, and then run by one process per device."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aitrain.config import RunConfig
from aitrain.config.frozen import continuation
from aitrain.dist.processes import run_ranks
from aitrain.dist.ranks import Ranks, detect
from aitrain.errors import EXIT_DONE, EXIT_REQUEUE, AitrainError, DataError, Interrupted, RecipeError, of_code
from aitrain.io import write_bytes
from aitrain.io.home import user_path
from aitrain.io.imports import without_collection
from aitrain.preflight import refuse_faults, usable_devices
from aitrain.recipe import amend, compose
from aitrain.trainer.restarts import note_launch
from aitrain.trainer.resume_options import ResumeOptions
from aitrain.trainer.run_directory import RunDirectory, fixed

FROZEN = "run.yaml"
"""Name of the frozen configuration in a run directory."""


@dataclass(frozen=True)
class Start:
    """What rank 0 has prepared for the other ranks."""

    path: Path
    """Run directory."""

    is_new: bool = False
    """Whether the directory is new."""

    is_finished: bool = False
    """Whether there is nothing left to do."""

    before: tuple[bytes, int] | None = None
    """The content of `run.yaml` and the length of `events.jsonl` before a resumed run was changed."""


def train(recipe: str, overrides: Sequence[str]) -> int:
    """Train a recipe here: on this machine's devices, or as one rank of torchrun or srun.

    Args:
        recipe: Name or path of a recipe.
        overrides: Words `key=value`.

    Returns:
        The exit code.

    Raises:
        AitrainError: Anything the user can fix; nothing has been written then.
    """

    def new_run() -> Start:
        frozen = user_path(recipe)
        if frozen.name == FROZEN and frozen.is_file():
            raise RecipeError(
                f"{recipe} is the frozen configuration of a run, not a recipe: continue that run with `aitrain resume "
                f"{frozen.parent}`, or add --or-resume"
            )
        config = compose(recipe, overrides)
        refuse_faults(config)  # with paths as the user wrote them
        return Start(RunDirectory.create(fixed(config)).path, is_new=True)

    return _start(new_run)


def train_or_resume(recipe: str, overrides: Sequence[str]) -> int:
    """Start the run in `run.dir`, or continue it when it is there: one command line for a job that may be requeued.

    Args:
        recipe: Name or path of a recipe with `run.dir` among its keys, or the `run.yaml` of a run.
        overrides: Words `key=value`.

    Returns:
        The exit code; a run that is finished already is done.

    Raises:
        AitrainError: Anything the user can fix; the run is then unchanged.
    """

    def new_or_same() -> Start:
        frozen = user_path(recipe)
        if frozen.name == FROZEN:
            directory = RunDirectory.open(frozen.parent)
            return _unless_finished(directory, amend(directory.config(), overrides), overrides)
        given = compose(recipe, overrides)
        config = fixed(given)
        if config.run.dir is None:
            raise RecipeError(
                "--or-resume needs run.dir, else no restart could find the run again: add for instance "
                f"run.dir=runs/{config.run.name}"
            )
        path = Path(config.run.dir)
        if (path / FROZEN).is_file():
            directory = RunDirectory.open(path)
            return _unless_finished(directory, continuation(directory.config(), config, path), overrides)
        # a start that was killed before it froze anything leaves an empty directory
        refuse_faults(given, new_run=not RunDirectory.is_blank(path))
        directory = RunDirectory.create(config, over_blank=True)
        note_launch(directory, os.environ, config.cluster.restarts)
        return Start(directory.path, is_new=True)

    return _start(new_or_same)


def _unless_finished(directory: RunDirectory, config: RunConfig, overrides: Sequence[str]) -> Start:
    """Continue a run, unless it is finished and is not to become longer."""
    before = directory.config().trainer
    same_length = (before.max_steps, before.max_epochs) == (config.trainer.max_steps, config.trainer.max_epochs)
    if directory.is_finished and same_length:
        return Start(directory.path, is_finished=True)
    note_launch(directory, os.environ, config.cluster.restarts)
    return _going_on(directory, config, overrides)


def _going_on(directory: RunDirectory, config: RunConfig, overrides: Sequence[str]) -> Start:
    """Check a resumed run, and freeze what has changed."""
    refuse_faults(config, new_run=False)
    if config == directory.config():
        return Start(directory.path)
    told = directory.events_file.stat().st_size if directory.events_file.is_file() else 0
    before = (directory.config_file.read_bytes(), told)
    directory.freeze(config)
    directory.event("changed", overrides=list(overrides))
    return Start(directory.path, before=before)


def resume(run: Path, overrides: Sequence[str], options: ResumeOptions | None = None) -> int:
    """Continue a run from its newest good checkpoint, on any number of ranks.

    Args:
        run: The run directory.
        overrides: Words `key=value`; only keys that losses do not depend on.
        options: What the user says about continuing beside the keys.

    Returns:
        The exit code.

    Raises:
        AitrainError: Anything the user can fix; the run is then unchanged.
    """

    def same_run() -> Start:
        directory = RunDirectory.open(run)
        return _going_on(directory, amend(directory.config(), overrides), overrides)

    return _start(same_run, options or ResumeOptions())


def _start(prepare: Callable[[], Start], options: ResumeOptions = ResumeOptions()) -> int:  # noqa: B008 (frozen)
    ranks = detect()
    if ranks.launcher in ("torchrun", "srun"):
        return _as_rank(ranks, prepare, options)
    start = prepare()
    directory = RunDirectory.open(start.path)
    if start.is_finished:
        return _done(directory)
    count = usable_devices(directory.config())
    with _tidied(directory, start):
        if count > 1:
            command = [sys.executable, "-m", "aitrain.trainer.rank", str(directory.path), *options.words()]
            code = run_ranks(command, count)
            if code not in (EXIT_DONE, EXIT_REQUEUE):
                raise SystemExit(code if code > 0 else 128 - code)  # the ranks have said why
            return code
        with without_collection():
            from aitrain.trainer.fit import fit

        return fit(directory, Ranks(), options=options)


@contextmanager
def _tidied(directory: RunDirectory, start: Start) -> Iterator[None]:
    """After a failure: remove a new run that has done no step, record the failure in any other.

    A run that was refused before it continued is left unchanged.
    """

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    told = directory.events()
    # until training installs its own handlers, a signal must not leave an unfinished run
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except BaseException as error:
        if isinstance(error, Interrupted) or (isinstance(error, SystemExit) and error.code == EXIT_REQUEUE):
            directory.event("waiting", reason=str(error))
        elif start.is_new and directory.is_untouched and _is_told(error):
            shutil.rmtree(directory.path, ignore_errors=True)
        elif directory.events() > told:
            code = f"exit code {error.code}" if isinstance(error, SystemExit) else ""
            directory.note_failure(code or str(error) or type(error).__name__)
        elif start.before is not None and _is_told(error):
            write_bytes(directory.config_file, start.before[0])
            os.truncate(directory.events_file, start.before[1])
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_told(error: BaseException) -> bool:
    """Whether the user can know why a run ended; after a bug of ours, its files are kept."""
    if isinstance(error, SystemExit):
        return error.code in (AitrainError.exit_code, DataError.exit_code, 130, 143)
    return isinstance(error, (AitrainError, KeyboardInterrupt))


def _done(directory: RunDirectory) -> int:
    """Report that nothing is left to do."""
    print(f"{directory.path} is already finished: nothing left to do", file=sys.stderr)
    return EXIT_DONE


def _as_rank(ranks: Ranks, prepare: Callable[[], Start], options: ResumeOptions) -> int:
    """Run as one of many that torchrun or srun started: rank 0 checks and freezes the configuration, the others read
    it.
    """
    with without_collection():
        from aitrain.dist.group import Group
        from aitrain.trainer.fit import fit

    start = Start(Path())
    fault: tuple[int, str] | None = None
    if ranks.is_first:
        try:
            start = prepare()
        except AitrainError as error:
            fault = (error.exit_code, str(error))
    group = Group(ranks, _accelerator_of(ranks))
    try:
        fault, answer, is_finished = group.from_first((fault, str(start.path), start.is_finished))
        if fault is not None:
            # every rank leaves with the same code; only the first one speaks
            raise of_code(*fault) if ranks.is_first else SystemExit(fault[0])
        # not opened, which looks for run.yaml: on a shared file system a node may not see a new file yet
        directory = RunDirectory(Path(answer))
        if is_finished:
            return _done(directory) if ranks.is_first else EXIT_DONE
        if ranks.is_first:
            with _tidied(directory, start):
                return fit(directory, ranks, group, options)
        return fit(directory, ranks, group, options)
    except AitrainError as error:
        if ranks.is_first or "out of memory" in str(error):
            raise
        raise SystemExit(error.exit_code) from None  # all ranks have the same fault; one speaks
    finally:
        group.close()


def _accelerator_of(ranks: Ranks) -> str:
    """Choose the backend before the frozen configuration is known: GPUs when every local rank has one."""
    import torch

    visible = torch.cuda.device_count()
    return "cuda" if visible == 1 or visible >= ranks.local_world else "cpu"
