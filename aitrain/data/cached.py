"""Prepared data in the cache: a folder named by a checksum of everything that determines it, written once."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aitrain.dist.group import Group
from aitrain.errors import AitrainError, DataError
from aitrain.io import new_directory, remove_leftovers


def name_of(content: dict[str, Any]) -> str:
    """Return the name of the folder that these plain values determine.

    Args:
        content: Everything that determines what is prepared.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def cached(cache: Path, content: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """Return the folder of prepared data, created if it does not exist. Several processes may do this at once.

    Args:
        cache: Folder of all prepared data; made when absent.
        content: Everything that determines what is prepared, as plain values.
        write: Fills an empty folder.

    Raises:
        AitrainError: The cache cannot be written.
    """
    folder = cache / name_of(content)
    if folder.exists():
        return folder
    try:
        with new_directory(folder) as unfinished:
            write(unfinished)
    except FileExistsError:
        # Another process was faster; what it wrote has the same name because it has the same content.
        return folder
    except OSError as fault:
        if fault.errno in (errno.ENOTEMPTY, errno.EEXIST) and folder.exists():
            return folder
        raise AitrainError(
            f"prepared data cannot be written to {folder} ({fault.strerror or fault}): free space there or use "
            "another cache folder"
        ) from None
    return folder


def shared(group: Group, cache: Path, prepare: Callable[[], Sequence[Path]]) -> list[Path]:
    """Prepare on rank 0, and return its folders on every rank; a rank that cannot see them prepares its own.

    Args:
        group: The ranks.
        cache: Folder of all prepared data.
        prepare: Returns folders named by their content.

    Raises:
        DataError: The data is refused, on every rank; or it is not the same on every node.
    """

    def first() -> list[str]:
        remove_leftovers(cache, exclusive=False)
        return [str(folder) for folder in prepare()]

    found = [Path(folder) for folder in group.by_first(first)]
    own: list[Path] = found
    fault: AitrainError | None = None
    if not all(folder.is_dir() for folder in found):
        try:
            own = list(prepare())
        except AitrainError as error:
            fault = error
    # what each rank has must be what rank 0 has: data on a disk of the node may be an older copy
    if group.any_true(fault is not None or [path.name for path in own] != [path.name for path in found]):
        raise fault or DataError(
            "the data is not the same on every node: put data.path, data.validation_path and the model on a shared "
            "file system, or copy them to every node again"
        )
    return own
