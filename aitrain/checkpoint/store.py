"""Write, find, verify and read checkpoints: `step-00000100/` with safetensors shards and a manifest."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from aitrain.dist import heartbeat
from aitrain.dist.group import Group
from aitrain.errors import CheckpointError
from aitrain.io import discard, new_directory, write_text

FORMAT = 1
SHARD_BYTES = 4 << 30
"""Size at which a shard is closed; one shard is held in memory while it is filled."""

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
        """The plain values saved with the tensors."""
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
                raise CheckpointError(f"{file} is missing")
            if file.stat().st_size != entry["bytes"]:
                raise CheckpointError(f"{file} has {file.stat().st_size} bytes, but its manifest says {entry['bytes']}")
            if _sha256(file) != entry["sha256"]:
                raise CheckpointError(f"{file} does not match the checksum in its manifest")


def save(folder: Path, step: int, tensors: dict[str, Named], state: dict[str, Any], group: Group) -> Path:
    """Write a checkpoint and publish it once it is complete and durable.

    Every rank calls this and runs through the same tensors (gathering them may be collective); rank 0 writes. When it
    cannot, every rank gets the same error and nothing is left behind.

    Args:
        folder: Folder of the checkpoints of the run.
        step: Optimizer steps done.
        tensors: Kind -> names and unsharded tensors on the CPU.
        state: Plain values to keep with them.
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
    advice = "free space there (only a new run can use another checkpoint.path)"
    return f"the checkpoint {final} could not be written ({reason}): {advice}"


def _write(
    final: Path, step: int, tensors: dict[str, Iterator[tuple[str, torch.Tensor]]], state: dict[str, Any]
) -> None:
    if final.exists():  # a run that went back and came here again: the newer one counts
        discard(final)
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
        heartbeat.beat("writing a checkpoint")
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


def scan(folder: Path) -> tuple[list[Checkpoint], list[str]]:
    """Return the committed checkpoints of a folder.

    Args:
        folder: Folder of the checkpoints of a run; may not exist.

    Returns:
        The checkpoints, oldest first, and a sentence for each whose manifest cannot be read.
    """
    found, broken = [], []
    for path in sorted(folder.glob("step-*")):
        manifest = path / "manifest.json"
        if not re.fullmatch(r"step-\d{8}", path.name) or not manifest.is_file():
            continue
        try:
            content = json.loads(manifest.read_text(encoding="utf-8"))
            step, *_ = (content[key] for key in ("step", "files", "tensors", "state"))
            found.append(Checkpoint(path, int(step), content))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            broken.append(f"{manifest} is damaged ({error})")
    return found, broken


def committed(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints of a folder, oldest first; those with a damaged manifest are not among them.

    Args:
        folder: Folder of the checkpoints of a run; may not exist.
    """
    return scan(folder)[0]


def to_stderr(text: str) -> None:
    """Print a line for the user.

    Args:
        text: The line.
    """
    print(text, file=sys.stderr)


def choose(folder: Path, which: str, say: Callable[[str], None] = to_stderr) -> Checkpoint:
    """Return one committed checkpoint, verified.

    Args:
        folder: Folder of the checkpoints of a run.
        which: `newest` (the newest that is good), `best` (by validation loss) or a step.
        say: Called with every damaged checkpoint that is skipped.

    Raises:
        CheckpointError: There is no such checkpoint, the one that was asked for is damaged, or all are.
    """
    checkpoints, broken = scan(folder)
    found = {checkpoint.step: checkpoint for checkpoint in checkpoints}
    if not found and not broken:
        raise CheckpointError(f"{folder} has no checkpoint: the run was stopped before its first one")
    for sentence in broken:
        say(f"{sentence}: skipped")
    if which == "newest" or not found:
        return _newest_good(folder, list(reversed(checkpoints)), broken, say)
    if which == "best":
        newest = max(found)
        step = found[newest].state.get("best_step")
        step = newest if step is None else step
    elif which.isdigit():
        step = int(which)
    else:
        raise CheckpointError(
            f"checkpoint {which!r} is not known: write newest, best or one of the steps {sorted(found)}"
        )
    if step not in found:
        raise CheckpointError(f"{folder} has no checkpoint of step {step}: choose from {sorted(found)}")
    try:
        found[step].verify()
    except CheckpointError as error:
        others = sorted(set(found) - {step})
        advice = f"choose one of {others}" if others else "there is no other checkpoint"
        raise CheckpointError(f"{error}: {advice}") from None
    return found[step]


def _newest_good(
    folder: Path, newest_first: list[Checkpoint], broken: list[str], say: Callable[[str], None]
) -> Checkpoint:
    told = list(broken)
    for checkpoint in newest_first:
        try:
            checkpoint.verify()
        except CheckpointError as error:
            told.append(str(error))
            say(f"{error}: skipped")
        else:
            return checkpoint
    raise CheckpointError(
        "\n".join([f"every checkpoint in {folder} is damaged: restore one from a copy, or start a new run", *told])
    )


def set_aside(folder: Path, after: int, why: str) -> list[Path]:
    """Rename the checkpoints after the one a run continues from, so that no later start takes one for the newest.

    Args:
        folder: Folder of the checkpoints of the run.
        after: Step from which the run continues; later ones are renamed.
        why: What they are, the first word of their new names.

    Returns:
        Where they are now.
    """
    moved = []
    for path in sorted(folder.glob("step-*")):
        if re.fullmatch(r"step-\d{8}", path.name) and int(path.name.removeprefix("step-")) > after:
            aside = path.with_name(f"{why}-{path.name}")
            number = 1
            while aside.exists():
                number += 1
                aside = path.with_name(f"{why}-{number}-{path.name}")
            moved.append(path.rename(aside))
    return moved


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Delete the oldest checkpoints beyond a number; the best one and unreadable ones are kept in addition.

    Args:
        folder: Folder of the checkpoints of a run.
        keep: Newest checkpoints that stay.
        best_step: Step of the best one, or None.
    """
    for checkpoint in committed(folder)[:-keep]:
        if checkpoint.step != best_step:
            discard(checkpoint.path)
