"""The import of large packages at the start of a process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Keep Python's garbage collector off in the block, and from then on out of what the block has imported.

    torch and its like make half a million objects that stay to the end; looking through them again and again is a part
    of the time that an import takes, and of every full collection while training.

    Yields:
        Nothing; import in the block.

    Source: Python's documentation of gc.freeze.
    """
    was_on, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:  # else whatever is there now, garbage too, would stay for good
            gc.freeze()
        if was_on:
            gc.enable()
