"""Imports without garbage collection: it is back afterwards, and leaves alone what was imported."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from aitrain.io.imports import without_collection


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()
    sys.modules.pop("imported_in_a_test", None)


def test_what_was_imported_is_not_collected_again() -> None:
    frozen = gc.get_freeze_count()
    with without_collection():
        assert not gc.isenabled()
        sys.modules["imported_in_a_test"] = ModuleType("imported_in_a_test")
        made = [[number] for number in range(1000)]
    assert gc.isenabled() and gc.get_freeze_count() >= frozen + len(made)


def test_nothing_is_kept_for_good_where_nothing_was_imported() -> None:
    frozen = gc.get_freeze_count()
    with without_collection():
        pass
    assert gc.isenabled() and gc.get_freeze_count() == frozen


def test_a_fault_in_the_block_turns_it_on_again() -> None:
    with pytest.raises(ImportError), without_collection():
        raise ImportError("no such package")
    assert gc.isenabled()


def test_it_stays_off_where_it_was_off() -> None:
    gc.disable()
    with without_collection():
        pass
    assert not gc.isenabled()
