"""How a run is started: checked once, frozen once, then one process per device, whoever starts them."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aitrain.dist.processes import run_ranks
from aitrain.dist.ranks import Ranks, detect
from aitrain.errors import EXIT_DONE, EXIT_REQUEUE, AitrainError, DataError, RecipeError
from aitrain.preflight import refuse_faults, usable_devices
from aitrain.recipe import amend, compose, freeze
from aitrain.trainer.run_directory import RunDirectory


def train(recipe: str, overrides: Sequence[str]) -> int:
    """Train a recipe here: on this machine's devices, or as one rank of torchrun or srun.

    Args:
        recipe: Name or path of a recipe.
        overrides: Words `key=value`.

    Returns:
        The exit code.

    Raises:
        AitrainError: Anything the user can mend; nothing has been made then.
    """

    def new_run() -> Path:
        config = compose(recipe, overrides)
        refuse_faults(config)
        return RunDirectory.create(config).path

    return _start(new_run, is_new=True)


def resume(run: Path, overrides: Sequence[str]) -> int:
    """Go on with a run from its newest good checkpoint, on any number of ranks.

    Args:
        run: The run directory.
        overrides: Words `key=value`; only keys that losses do not depend on.

    Returns:
        The exit code.

    Raises:
        AitrainError: Anything the user can mend; the run is as it was then.
    """

    def same_run() -> Path:
        directory = RunDirectory.open(run)
        before = directory.config()
        config = amend(before, overrides)
        refuse_faults(config, new_run=False)
        if config != before:
            freeze(config, directory.config_file)
            directory.event("changed", overrides=list(overrides))
        return run

    return _start(same_run, is_new=False)


def _start(prepare: Callable[[], Path], is_new: bool) -> int:
    ranks = detect()
    if ranks.launcher in ("torchrun", "srun") and ranks.world > 1:
        return _as_rank(ranks, prepare, is_new)
    directory = RunDirectory.open(prepare())
    count = usable_devices(directory.config())
    with _tidied(directory, is_new):
        if count > 1:
            code = run_ranks([sys.executable, "-m", "aitrain.trainer.rank", str(directory.path)], count)
            if code not in (EXIT_DONE, EXIT_REQUEUE):
                raise SystemExit(code if code > 0 else 128 - code)  # the ranks have said why
            return code
        from aitrain.trainer.fit import fit

        return fit(directory, Ranks())


@contextmanager
def _tidied(directory: RunDirectory, is_new: bool) -> Iterator[None]:
    """When a run ends badly: take a new one away that has done no step, note in any other that it failed."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    told = directory.events()
    # until training has handlers of its own, a signal must not leave half a run behind
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except BaseException as error:
        if is_new and directory.is_untouched and _is_told(error):
            shutil.rmtree(directory.path, ignore_errors=True)
        elif directory.events() > told:
            code = f"exit code {error.code}" if isinstance(error, SystemExit) else ""
            directory.note_failure(code or str(error) or type(error).__name__)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_told(error: BaseException) -> bool:
    """Whether the user knows why a run ended; after a bug of ours what it wrote is kept."""
    if isinstance(error, SystemExit):
        return error.code in (AitrainError.exit_code, DataError.exit_code, 130, 143)
    return isinstance(error, (AitrainError, KeyboardInterrupt))


def _as_rank(ranks: Ranks, prepare: Callable[[], Path], is_new: bool) -> int:
    """Run as one of many that torchrun or srun started: rank 0 checks and freezes, the others read what it froze."""
    from aitrain.dist.group import Group
    from aitrain.trainer.fit import fit

    path: Path | None = None
    fault: tuple[int, str] | None = None
    if ranks.is_first:
        try:
            path = prepare()
        except AitrainError as error:
            fault = (error.exit_code, str(error))
    group = Group(ranks, _accelerator_of(ranks))
    try:
        fault, answer = group.from_first((fault, str(path)))
        if fault is not None:
            # every rank leaves with the same code; only the first one speaks
            raise _fault(fault) if ranks.is_first else SystemExit(fault[0])
        directory = RunDirectory.open(Path(answer))
        if ranks.is_first:
            with _tidied(directory, is_new):
                return fit(directory, ranks, group)
        return fit(directory, ranks, group)
    except AitrainError as error:
        if ranks.is_first or "out of memory" in str(error):
            raise
        raise SystemExit(error.exit_code) from None  # all ranks have the same fault; one speaks
    finally:
        group.close()


def _fault(fault: tuple[int, str]) -> AitrainError:
    return DataError(fault[1]) if fault[0] == DataError.exit_code else RecipeError(fault[1])


def _accelerator_of(ranks: Ranks) -> str:
    """Choose the backend before the frozen configuration is known: GPUs when every local rank can have one."""
    import torch

    return "cuda" if torch.cuda.device_count() >= ranks.local_world else "cpu"
