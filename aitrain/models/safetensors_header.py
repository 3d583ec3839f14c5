"""Reads the header of a safetensors file with the standard library and tells whether the file is whole."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

from aitrain.errors import ModelError

_LONGEST_HEADER = 100_000_000


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the tensor names and shapes, and compare the file's size with what its header promises.

    Args:
        path: A `.safetensors` file.

    Returns:
        Shape of each tensor by name.

    Raises:
        ModelError: The header is damaged, or the file is shorter or longer than its header says.

    Source: https://huggingface.co/docs/safetensors/index#format
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise ModelError(f"{path} ({size} bytes) has no whole safetensors header: download or copy it again")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in header.values()]
            shapes = {name: tuple(int(n) for n in entry["shape"]) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ModelError(f"{path} has a damaged safetensors header ({error}): download or copy it again") from error
    promised = 8 + length + max(ends, default=0)
    if promised != size:
        kind = "shorter" if size < promised else "longer"
        raise ModelError(
            f"{path} is {kind} than its header says ({size} of {promised} bytes): download or copy it again"
        )
    return shapes


def count_parameters(shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the number of weights in tensors of these shapes."""
    return sum(prod(shape) for shape in shapes.values())
