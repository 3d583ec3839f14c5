"""The import of large packages at the start of a process."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def without_collection() -> Iterator[None]:
    """Keep Python's garbage collector off in the block, and from then on out of what the block has imported.

    torch and its like make half a million objects that stay to the end; looking through them again and again is a part
    of the time that an import takes, and of every full collection while training. Parts of scipy wait until somebody
    needs them: see `Postponed`.

    Yields:
        Nothing; import in the block.

    Source: Python's documentation of gc.freeze.
    """
    was_on, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    postponed = [
        Postponed.put("scipy.signal", hamming=None),
        Postponed.put("scipy.optimize", functions=["linear_sum_assignment"]),
    ]
    try:
        yield
    finally:
        for module in postponed:
            module.take_away()
        if len(sys.modules) > known:  # else whatever is there now, garbage too, would stay for good
            gc.freeze()
        if was_on:
            gc.enable()


class Postponed(ModuleType):
    """A module that is imported when something of it is needed, and not before.

    torchmetrics, which Lightning imports, imports `scipy.signal` where scipy is installed, to see whether it has a name
    `hamming` that was there in former times. transformers imports a function of `scipy.optimize` with every model, for
    the losses of object detection.
    """

    @classmethod
    def put(cls, name: str, functions: Sequence[str] = (), **values: Any) -> Postponed:
        """Replace a module, unless it is already imported.

        Args:
            name: Its full name.
            functions: Functions of it that do not make it be imported before they are called.
            values: Names in it that do not make it be imported, and their values.
        """
        module = cls(name)
        module.__dict__.update({each: module._called_later(each) for each in functions}, **values)
        sys.modules.setdefault(name, module)
        return module

    def take_away(self) -> None:
        """Let the next import be the real one."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]

    def _called_later(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.take_away()
            return getattr(importlib.import_module(self.__name__), name)(*arguments, **options)

        return call

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the machinery of imports asks every module
            raise AttributeError(name)
        self.take_away()
        return getattr(importlib.import_module(self.__name__), name)
