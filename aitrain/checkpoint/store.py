"""Write, find, verify and read checkpoints: `step-00000100/` with safetensors shards and a manifest."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from aitrain.dist.group import Group
from aitrain.errors import CheckpointError
from aitrain.io import new_directory, write_text

FORMAT = 1
SHARD_BYTES = 4 << 30
"""A shard is closed when it has grown to this: one shard is held in memory while it is filled."""

Named = Iterable[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint.

    Attributes:
        path: Its directory.
        step: Optimizer steps done.
        manifest: What `manifest.json` says: format, step, files with size and sha256, tensors by kind, state.
    """

    path: Path
    step: int
    manifest: dict[str, Any]

    @property
    def state(self) -> dict[str, Any]:
        """The plain values saved beside the tensors."""
        state: dict[str, Any] = self.manifest["state"]
        return state

    def names(self, kind: str) -> list[str]:
        """Return the names of the tensors of a kind.

        Args:
            kind: `weights`, `optimizer` or `rng`.
        """
        return list(self.manifest["tensors"].get(kind, {}))

    def read(self, kind: str, name: str) -> torch.Tensor:
        """Return one tensor, on the CPU; only its own bytes are read.

        Args:
            kind: `weights`, `optimizer` or `rng`.
            name: Name of the tensor.

        Raises:
            CheckpointError: The checkpoint has no such tensor.
        """
        file = self.manifest["tensors"].get(kind, {}).get(name)
        if file is None:
            raise CheckpointError(
                f"{self.path} has no {kind} tensor {name!r}: it was written by another model or adapter"
            )
        with safe_open(self.path / file, framework="pt") as shard:
            tensor: torch.Tensor = shard.get_tensor(name)
        return tensor

    def verify(self) -> None:
        """Compare every file with the manifest.

        Raises:
            CheckpointError: A file is missing, has another size or another checksum.
        """
        for entry in self.manifest["files"]:
            file = self.path / entry["name"]
            if not file.is_file():
                raise CheckpointError(f"{file} is missing: use an older checkpoint")
            if file.stat().st_size != entry["bytes"]:
                raise CheckpointError(
                    f"{file} has {file.stat().st_size} bytes, its manifest says {entry['bytes']}: "
                    "use an older checkpoint"
                )
            if _sha256(file) != entry["sha256"]:
                raise CheckpointError(f"{file} does not have the checksum of its manifest: use an older checkpoint")


def save(folder: Path, step: int, tensors: dict[str, Named], state: dict[str, Any], group: Group) -> Path:
    """Write a checkpoint and publish it when it is whole and durable.

    Every rank calls this and runs through the same tensors (gathering them may be collective); rank 0 writes. When it
    cannot, every rank gets the same error and nothing is left behind.

    Args:
        folder: Where the checkpoints of the run stand.
        step: Optimizer steps done.
        tensors: Kind -> names and whole tensors on the CPU.
        state: Plain values to keep beside them.
        group: The ranks.

    Returns:
        The checkpoint's directory.

    Raises:
        CheckpointError: The disk is full, or the folder cannot be written.
    """
    final = folder / f"step-{step:08d}"
    fault: str | None = None
    if group.ranks.is_first:
        remaining = {kind: iter(named) for kind, named in tensors.items()}
        try:
            _write(final, step, remaining, state)
        except OSError as error:
            fault = _not_written(final, error.strerror or str(error))
        except Exception as error:
            if "os error" not in str(error).lower() and "No space" not in str(error):
                raise
            fault = _not_written(final, str(error))
        if fault:  # the other ranks are gathering still: stay with them to the end
            for named in remaining.values():
                for _ in named:
                    continue
    else:
        for entries in tensors.values():
            for _ in entries:
                continue
    fault = group.from_first(fault)
    if fault:
        raise CheckpointError(fault)
    return final


def _not_written(final: Path, reason: str) -> str:
    advice = "free space there; only a new run can have checkpoint.path elsewhere"
    return f"the checkpoint {final} could not be written ({reason}): {advice}"


def _write(
    final: Path, step: int, tensors: dict[str, Iterator[tuple[str, torch.Tensor]]], state: dict[str, Any]
) -> None:
    if final.exists():  # a run that went back and came here again: the newer one counts
        shutil.rmtree(final)
    with new_directory(final) as folder:
        where = {kind: _write_kind(folder, kind, named) for kind, named in tensors.items()}
        files = [
            {"name": file.name, "bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in sorted(folder.iterdir())
        ]
        manifest = {"format": FORMAT, "step": step, "files": files, "tensors": where, "state": state}
        write_text(folder / "manifest.json", json.dumps(manifest, indent=1))


def _write_kind(folder: Path, kind: str, named: Iterator[tuple[str, torch.Tensor]]) -> dict[str, str]:
    where: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    filled = number = 0

    def close() -> None:
        nonlocal shard, filled, number
        number += 1
        file = folder / f"{kind}-{number:05d}.safetensors"
        save_file(shard, file)
        file.chmod(0o666 & ~_umask())  # safetensors writes 0600: the project's other members could not resume
        where.update(dict.fromkeys(shard, file.name))
        shard, filled = {}, 0

    for name, tensor in named:
        shard[name] = tensor.contiguous()
        filled += tensor.numel() * tensor.element_size()
        if filled >= SHARD_BYTES:
            close()
    if shard:
        close()
    return where


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sha256(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def committed(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints of a folder, oldest first; what is not committed is not among them.

    Args:
        folder: Where the checkpoints of a run stand; may not exist.

    Raises:
        CheckpointError: A manifest cannot be read.
    """
    found = []
    for path in sorted(folder.glob("step-*")):
        manifest = path / "manifest.json"
        if not re.fullmatch(r"step-\d{8}", path.name) or not manifest.is_file():
            continue
        try:
            content = json.loads(manifest.read_text())
            step, *_ = (content[key] for key in ("step", "files", "tensors", "state"))
            found.append(Checkpoint(path, int(step), content))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{manifest} is damaged ({error}): move {path.name} away and use an older checkpoint"
            ) from None
    return found


def choose(folder: Path, which: str) -> Checkpoint:
    """Return one committed checkpoint, verified.

    Args:
        folder: Where the checkpoints of a run stand.
        which: `newest`, `best` (by validation loss) or a step.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged.
    """
    found = {checkpoint.step: checkpoint for checkpoint in committed(folder)}
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoint: the run was stopped before its first one")
    newest = max(found)
    if which == "best":
        step = found[newest].state.get("best_step")
        step = newest if step is None else step
    elif which == "newest":
        step = newest
    elif which.isdigit():
        step = int(which)
    else:
        raise CheckpointError(
            f"checkpoint {which!r} is not known: write newest, best or one of the steps {sorted(found)}"
        )
    if step not in found:
        raise CheckpointError(f"{folder} holds no checkpoint of step {step}: there are {sorted(found)}")
    found[step].verify()
    return found[step]


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Delete the oldest checkpoints beyond a number; the best one stays besides.

    Args:
        folder: Where the checkpoints of a run stand.
        keep: Newest checkpoints that stay.
        best_step: Step of the best one, or None.
    """
    for checkpoint in committed(folder)[:-keep]:
        if checkpoint.step != best_step:
            # the manifest goes first: a crash between leaves a directory that no reader takes for a checkpoint
            (checkpoint.path / "manifest.json").unlink()
            shutil.rmtree(checkpoint.path)
