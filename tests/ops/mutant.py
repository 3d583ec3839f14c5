"""One bug to plant: which text becomes which, and the test that has to notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A bug, as an edit of one file."""

    name: str
    """What is wrong with it; unique within the op."""

    file: str
    """The file to edit, from the root of the tree: `aitrain/ops/rms_norm/kernel.py`."""

    old: str
    """Text that stands there exactly once."""

    new: str

    test: str
    """The test that must turn red: `tests/ops/rms_norm/test_kernel.py::test_gradients`, if need be with `[...]`."""
