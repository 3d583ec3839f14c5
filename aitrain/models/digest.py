"""Checksums that identify the model of a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

WHOLE_BYTES = 64 << 20
"""Files up to this size are read completely."""

PIECES, PIECE_BYTES = 64, 1 << 16
"""Of larger files, so many pieces of so many bytes are read, evenly spread: trained weights differ everywhere."""

_FILES = ("config.json", "*.safetensors", "*.gguf", "*.py")


def model_digests(folder: Path) -> dict[str, str]:
    """Return a checksum for each file that determines what a model computes.

    Args:
        folder: A Hugging Face folder.

    Returns:
        File name -> checksum; of large files, over their size and a sample of their content.
    """
    found = sorted({path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()})
    return {path.name: file_digest(path) for path in found}


def file_digest(path: Path) -> str:
    """Return a checksum of a file.

    Args:
        path: The file; above `WHOLE_BYTES`, its size and evenly spread pieces are taken.
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        if size <= WHOLE_BYTES:
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
        last = size - PIECE_BYTES
        for number in range(PIECES):  # the first piece holds the header of a safetensors file
            file.seek(number * last // (PIECES - 1))
            digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()


def text_digest(content: Any) -> str:
    """Return a checksum of plain values.

    Args:
        content: Anything that JSON can write.
    """
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
