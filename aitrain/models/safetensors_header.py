"""Reads the header of a safetensors file with the standard library and checks that the file is complete."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from aitrain.errors import ModelError

_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Tensor:
    """Header entry of one tensor."""

    dtype: str
    """Number format as safetensors names it, for instance `BF16`."""

    shape: tuple[int, ...]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors' names, number formats and shapes, and compare the file's size with what its header promises.

    Args:
        path: A `.safetensors` file.

    Returns:
        What the header says about each tensor, by name.

    Raises:
        ModelError: The header is damaged, or the file is shorter or longer than its header says.

    Source: https://huggingface.co/docs/safetensors/index#format
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise ModelError(f"{path} ({size} bytes) has no complete safetensors header: download or copy it again")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in header.values()]
            tensors = {
                name: Tensor(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ModelError(f"{path} has a damaged safetensors header ({error}): download or copy it again") from error
    promised = 8 + length + max(ends, default=0)
    if promised != size:
        kind = "shorter" if size < promised else "longer"
        raise ModelError(
            f"{path} is {kind} than its header says ({size} of {promised} bytes): download or copy it again"
        )
    return tensors


def count_parameters(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of weights in tensors.

    Args:
        tensors: From `read_tensors`, of all files of a model.
    """
    return sum(prod(tensor.shape) for tensor in tensors.values())


def main_dtype(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the number format of most weights.

    Args:
        tensors: From `read_tensors`, of all files of a model.
    """
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += prod(tensor.shape)
    return sizes.most_common(1)[0][0] if sizes else None
