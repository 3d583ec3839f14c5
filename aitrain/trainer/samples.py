"""The run's samples: prepared once by rank 0, then mapped by every rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from aitrain.config import RunConfig
from aitrain.data.prepare import Files, Prepared, open_prepared, prepare
from aitrain.dist.group import Group
from aitrain.errors import AitrainError, DataError
from aitrain.preflight import local_path


def cache_folder() -> Path:
    """Return the folder of prepared data: `prepared/` in `AITRAIN_CACHE`, or in `~/.cache/aitrain`."""
    return Path(os.environ.get("AITRAIN_CACHE") or Path.home() / ".cache" / "aitrain") / "prepared"


def data_files(config: RunConfig) -> Files:
    """Return the recipe's data files, resolved.

    Args:
        config: The run.
    """
    held_out = config.data.validation_path
    return Files(local_path(config.data.path), local_path(held_out) if held_out else None)


def prepare_samples(config: RunConfig, tokenizer: Any, group: Group) -> Prepared:
    """Tokenise and mask the data, or find it done; rank 0 works while the others wait.

    Args:
        config: The run.
        tokenizer: The model's tokenizer.
        group: The ranks.

    Raises:
        DataError: The audit refuses the data; every rank gets the same answer.
    """
    found: Prepared | None = None
    fault: tuple[int, str] | None = None
    if group.ranks.is_first:
        try:
            found = prepare(config.data, config.task, tokenizer, cache_folder(), config.seed, data_files(config), _show)
        except AitrainError as error:
            fault = (error.exit_code, str(error))
    fault = group.from_first(fault)
    if fault is not None:
        raise DataError(fault[1]) if fault[0] == DataError.exit_code else AitrainError(fault[1])
    folders = group.from_first([str(folder) for folder in found.folders] if found else None)
    if found is not None:
        return found
    if all(Path(folder).is_dir() for folder in folders):
        return open_prepared([Path(folder) for folder in folders], config.data.validation_samples, config.seed)
    # the cache is on a disk of rank 0's node: this node prepares its own
    return prepare(config.data, config.task, tokenizer, cache_folder(), config.seed, data_files(config))


def _show(done: int, total: int | None) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(
            f"\r\033[Kreading data: {done:,}" + (f" of {total:,}" if total else "") + ("\n" if done == total else "")
        )
        sys.stderr.flush()
