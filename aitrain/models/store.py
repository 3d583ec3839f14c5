"""Models fetched from a hub: stored by their checksum, named in `aitrain.lock`, verified before a job uses them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aitrain.config.model import Model
from aitrain.errors import ModelError
from aitrain.io import new_directory, write_text, writing
from aitrain.io.home import user_path
from aitrain.models.assets import cache

LOCK = "aitrain.lock"
"""File in the working directory: the checksum of each fetched name."""

MANIFEST = ".aitrain-manifest.json"
"""File in a folder of the store: its source, and size and checksum of every other file."""

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "*.py", "README.md", "LICENSE*"]
"""Files of a model repository that training uses."""

_THREADS = 8


@dataclass(frozen=True)
class Stored:
    """A model in the store."""

    name: str
    """Its name on the hub."""

    revision: str | None
    """The requested revision; `None` = the main branch."""

    commit: str
    """Its commit."""

    content: str
    """Checksum of all files, and name of its folder."""

    size: int
    """Bytes."""

    @property
    def folder(self) -> Path:
        """Where it is."""
        return cache() / "store" / self.content


def fetch(model: Model, directory: Path, report: Callable[[str], None] = print) -> Stored:
    """Download a model from the hub into the store, and write its name and content into the lock file.

    This is the only command that may open a connection; it requests only this model from the hub.

    Args:
        model: The recipe's group `model`; its path is a name on a hub.
        directory: Where `aitrain.lock` goes: the working directory of the runs.
        report: Called with one line per stage.

    Raises:
        ModelError: It cannot be downloaded or written.
    """
    from huggingface_hub import snapshot_download

    report(f"downloading {_named(str(model.path), model.revision)} ...")
    staging = cache() / "store" / f".fetch-{os.getpid()}"
    try:
        path = snapshot_download(
            str(model.path),
            revision=model.revision,
            allow_patterns=PATTERNS,
            local_dir=staging,
            cache_dir=staging / ".cache",
        )
        commit = _commit(Path(path))
        shutil.rmtree(staging / ".cache", ignore_errors=True)
        stored = _keep(staging, model, commit)
    except ModelError:
        raise
    except Exception as error:  # whatever a hub, a proxy or a disk answers
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model.path={_named(str(model.path), model.revision)} cannot be fetched: {reason}. Check the name and the "
            "network, or name a local folder"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _write_lock(directory, stored)
    report(
        f"{_named(str(model.path), model.revision)} is commit {commit[:12]}, {stored.size / 1e9:.2f} GB in "
        f"{stored.folder}"
    )
    return stored


def _named(name: str, revision: str | None) -> str:
    return name if revision is None else f"{name}@{revision}"


def _commit(folder: Path) -> str:
    """Return the commit that huggingface_hub recorded with the files; `unknown` if it did not."""
    for note in sorted((folder / ".cache/huggingface/download").rglob("*.metadata")):
        lines = note.read_text(encoding="utf-8").splitlines()
        if lines:
            return lines[0].strip()
    return "unknown"


def _keep(staging: Path, model: Model, commit: str) -> Stored:
    """Move downloaded files into the folder named by their checksum."""
    files = _checksums(staging, [path for path in sorted(staging.rglob("*")) if path.is_file()])
    if not files:
        raise ModelError(f"model.path={model.path} has none of the files that a model needs: check the name")
    content = "sha256-" + hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:40]
    size = sum(int(facts["bytes"]) for facts in files.values())
    stored = Stored(str(model.path), model.revision, commit, content, size)
    if not stored.folder.is_dir():
        with writing(str(stored.folder), "free space there, or set AITRAIN_CACHE"), new_directory(stored.folder) as new:
            for name in files:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                os.rename(staging / name, new / name)
            facts = {"source": _named(str(model.path), model.revision), "commit": commit, "files": files}
            write_text(new / MANIFEST, json.dumps(facts, indent=1) + "\n")
    return stored


def _checksums(folder: Path, paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of files, by their names in the folder."""

    def of(path: Path) -> tuple[str, dict[str, Any]]:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return str(path.relative_to(folder)), {"bytes": path.stat().st_size, "sha256": digest}

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(sorted(pool.map(of, paths)))


def verify(folder: Path) -> None:
    """Refuse a model of the store that differs from what was fetched; other folders are not checked.

    Args:
        folder: A model folder.

    Raises:
        ModelError: Files are missing or changed; they are named.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    missing = [name for name in facts["files"] if not (folder / name).is_file()]
    present = [folder / name for name in facts["files"] if name not in missing]
    found = _checksums(folder, present)
    changed = [name for name, value in found.items() if value != facts["files"][name]]
    if missing or changed:
        what = [*(f"{name} is missing" for name in missing), *(f"{name} was changed" for name in changed)]
        raise ModelError(
            f"{folder} differs from what was fetched from {facts['source']}: {', '.join(what)}. Remove the folder and "
            "run `aitrain fetch` again"
        )


def find(model: Model, directory: Path | None = None) -> Stored | None:
    """Return the stored model of a hub name, or `None` if it was not fetched.

    Args:
        model: The recipe's group `model`.
        directory: Where `aitrain.lock` is; the working directory when absent.

    Raises:
        ModelError: The lock file cannot be read, or names content that is not in the store.
    """
    entry = _read_lock(directory or Path.cwd()).get(_named(str(model.path), model.revision))
    if entry is None:
        return None
    stored = Stored(str(model.path), model.revision, entry["commit"], entry["content"], entry["bytes"])
    if not stored.folder.is_dir():
        raise ModelError(
            f"{LOCK} names {stored.content} for {model.path}, which is not in {cache()}/store: run `aitrain fetch` "
            "where there is a network, with AITRAIN_CACHE on a file system that the nodes see"
        )
    return stored


def pinned(model: Model) -> Model:
    """Return the group `model` with a fetched name replaced by its folder in the store.

    Args:
        model: The recipe's group `model`.

    Raises:
        ModelError: The lock file cannot be read, or names content that is not in the store.
    """
    if str(model.path).startswith("asset:") or user_path(str(model.path)).exists():
        return model
    stored = find(model)
    return model if stored is None else replace(model, path=str(stored.folder), revision=None, allow_network=False)


def _read_lock(directory: Path) -> dict[str, Any]:
    path = directory / LOCK
    if not path.is_file():
        return {}
    try:
        models = json.loads(path.read_text(encoding="utf-8"))["models"]
        assert all({"commit", "content", "bytes"} <= entry.keys() for entry in models.values())
        return dict(models)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ModelError(f"{path} cannot be read ({error}): remove it and run `aitrain fetch` again") from None


def _write_lock(directory: Path, stored: Stored) -> None:
    models = _read_lock(directory)
    entry = {"commit": stored.commit, "content": stored.content, "bytes": stored.size}
    models[_named(stored.name, stored.revision)] = entry
    with writing(str(directory / LOCK), "free space there"):
        write_text(directory / LOCK, json.dumps({"version": 1, "models": models}, indent=1, sort_keys=True) + "\n")
