"""The weight files of a model folder: which exist, whether they are complete, and their headers. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from aitrain.errors import ModelError
from aitrain.models.safetensors_header import Tensor, read_tensors

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

SAFE = "convert it with model.save_pretrained(folder, safe_serialization=True) and name that folder"
"""Advice for pickle weights."""


def read_json(path: Path) -> dict:
    """Return a JSON object; an absent or broken file counts as empty, because its reader reports it.

    Args:
        path: The file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def weight_faults(path: Path, tensors: dict[str, Tensor]) -> Iterator[str]:
    """Yield what is wrong with the weight files, and fill in the tensors that are there.

    Args:
        path: A model folder.
        tensors: Filled with the header entries of each tensor.

    Yields:
        One sentence per fault.
    """
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    wanted: dict[str, str] = {}
    if single.is_file():
        files = [single]
    elif index.is_file():
        wanted = read_json(index).get("weight_map") or {}
        if not wanted:
            yield f"model.path: {index} lists no weights: copy the model again"
        files = [path / name for name in sorted(set(wanted.values()))]
    elif any(next(path.glob(pattern), None) for pattern in PICKLES):
        yield f"model.path={path} has only pickle weights, which can run arbitrary code: {SAFE}"
        return
    else:
        yield (
            f"model.path={path} has no weights (model.safetensors): copy them, or write model.init=random to "
            "start from the config alone"
        )
        return
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        yield f"model.path={path} is missing {', '.join(missing)}, which {index.name} lists: copy the missing shard"
    damaged = False
    for file in files:
        if file.is_file():
            try:
                tensors.update(read_tensors(file))
            except ModelError as error:
                damaged = True
                yield f"model.path: {error}"
    absent = sorted(set(wanted) - set(tensors))
    if absent and not missing and not damaged:
        yield (
            f"model.path={path}: {len(absent)} tensors listed in {index.name} are in no shard, first "
            f"{absent[0]}: copy the model again"
        )
