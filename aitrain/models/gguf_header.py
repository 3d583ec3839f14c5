"""Reads the header of a GGUF file with the standard library: metadata and tensor shapes, not the weights."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import BinaryIO

from aitrain.errors import ModelError

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_LONGEST_STRING = 1 << 28
FULL_PRECISION = {0: "F32", 1: "F16", 8: "Q8_0", 28: "F64"}
"""Number -> name of the tensor types that carry more than bfloat16's eight bits."""


@dataclass
class GgufHeader:
    """The header before the weights."""

    fields: dict[str, object] = field(default_factory=dict)
    """Metadata; of an array only its length, as an int under its own key."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of each tensor, fastest dimension first."""

    types: dict[str, int] = field(default_factory=dict)
    """GGML type number of each tensor."""

    def parameters(self) -> int:
        """Return the number of weights."""
        return sum(prod(shape) for shape in self.shapes.values())


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def raw(self, count: int) -> bytes:
        if count > _LONGEST_STRING:
            raise ValueError(f"a string of {count} bytes")
        content = self.file.read(count)
        if len(content) != count:
            raise ValueError("the file ends inside its header")
        return content

    def scalar(self, layout: str) -> int | float | bool:
        return struct.unpack(layout, self.raw(struct.calcsize(layout)))[0]

    def count(self, layout: str = "<Q") -> int:
        return int(self.scalar(layout))

    def text(self) -> str:
        return self.raw(self.count()).decode("utf-8", errors="replace")

    def value(self, kind: int) -> object:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise ValueError(f"a value of unknown type {kind}")
            return self.scalar(_SCALARS[kind])
        inner, length = self.count("<I"), self.count()
        if inner in _SCALARS:
            self.file.seek(length * struct.calcsize(_SCALARS[inner]), 1)
        else:
            for _ in range(length):
                self.value(inner)
        return length


def read_header(path: Path) -> GgufHeader:
    """Read metadata and tensor shapes of a GGUF file.

    Args:
        path: A `.gguf` file.

    Returns:
        Its header.

    Raises:
        ModelError: The file is no GGUF file of version 2 or 3, or its header is damaged.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    header = GgufHeader()
    try:
        with open(path, "rb") as file:
            reader = _Reader(file)
            if reader.raw(4) != _MAGIC:
                raise ValueError("it does not begin with GGUF")
            version = reader.count("<I")
            if version not in (2, 3):
                raise ValueError(f"version {version} is not 2 or 3")
            tensors, fields = reader.count(), reader.count()
            for _ in range(fields):
                key = reader.text()
                header.fields[key] = reader.value(reader.count("<I"))
            for _ in range(tensors):
                name = reader.text()
                header.shapes[name] = tuple(reader.count() for _ in range(reader.count("<I")))
                header.types[name] = reader.count("<I")
                reader.count()
    except (ValueError, struct.error, OSError) as error:
        raise ModelError(f"{path} cannot be read as a GGUF file ({error}): download it again") from error
    return header
