"""A folder that stands for the parallel file system."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder in the home directory: pytest's own is in /tmp, which every cluster takes for a node's own storage."""
    with tempfile.TemporaryDirectory(prefix=".aitrain-test-", dir=Path.home()) as folder:
        yield Path(folder)
