"""Imports without garbage collection: it is back afterwards, and leaves alone what was imported."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from aitrain.io.imports import Postponed, without_collection


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


def test_a_module_is_imported_when_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text("taken = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    postponed = Postponed.put("slow_to_import", former=None)
    import slow_to_import

    assert slow_to_import is postponed and hasattr(slow_to_import, "former")
    from slow_to_import import taken  # its first name that is not known before

    assert taken == 7 and sys.modules["slow_to_import"] is not postponed
    del sys.modules["slow_to_import"]
    other = Postponed.put("slow_to_import")
    other.take_away()
    assert "slow_to_import" not in sys.modules


def test_a_start_without_what_it_does_not_need() -> None:
    """scipy is here, and Lightning and transformers do not load its largest parts; who needs them gets them."""
    script = """
import sys
from aitrain.io.imports import Postponed, without_collection
with without_collection():
    import lightning.pytorch
    from transformers import LlamaForCausalLM
    from transformers.loss.loss_for_object_detection import linear_sum_assignment
for name in ("scipy.signal", "scipy.signal._signaltools", "scipy.optimize", "scipy.optimize._optimize"):
    assert name not in sys.modules, name
assert [each.tolist() for each in linear_sum_assignment([[2, 1], [1, 3]])] == [[0, 1], [1, 0]]
import scipy.optimize
assert scipy.optimize.linear_sum_assignment is not linear_sum_assignment
import scipy.signal
assert scipy.signal.convolve([1, 2], [1, 1]).tolist() == [1, 3, 2]
"""
    subprocess.run([sys.executable, "-c", script], check=True)
