"""Keys of the group `export`: the model as others can use it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Export:
    """What is written to `export/` when the run is done."""

    at_end: bool = True
    """Write a Hugging Face folder when training is done; off = only with `aitrain export`."""

    merge: bool = True
    """Merge the adapter into the weights; the adapter itself is kept beside it."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        yield from ()
