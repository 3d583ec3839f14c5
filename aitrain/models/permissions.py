"""Gives written files the permissions of the user's umask: safetensors makes them readable by the owner only."""

from __future__ import annotations

import os
from pathlib import Path


def share_files(folder: Path) -> None:
    """Set the mode of every file below a folder to what the umask allows.

    Args:
        folder: A folder just written.
    """
    mask = os.umask(0)
    os.umask(mask)
    for root, _, names in os.walk(folder):
        for name in names:
            os.chmod(Path(root, name), 0o666 & ~mask)
