"""What a model is, is read once and travels: neither a start nor an export looks at the folder again and again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer.conftest import Compose

from aitrain.dist.ranks import Ranks
from aitrain.models import folder, load
from aitrain.tasks.registry import task_of
from aitrain.trainer.fit import fit
from aitrain.trainer.run_directory import RunDirectory


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every look at a model folder."""
    seen: list[str] = []
    original: Callable[..., Any] = folder.inspect

    def inspect(model: Any, *rest: Any) -> Any:
        seen.append(str(model.path))
        return original(model, *rest)

    monkeypatch.setattr(folder, "inspect", inspect)
    monkeypatch.setattr(load, "inspect", inspect)
    return seen


def test_a_training_looks_once_and_its_export_once(small: Compose, tmp_path: Path, looks: list[str]) -> None:
    config = small(f"run.dir={tmp_path}/run", "trainer.max_steps=1", "trainer.micro_batch_samples=null")
    assert fit(RunDirectory.create(config), Ranks()) == 0
    assert len(looks) == 2


def test_a_task_takes_what_was_found(small: Compose, looks: list[str]) -> None:
    config = small()
    task = task_of(config)
    assert len(looks) == 1
    again = task_of(config, "cpu", task.located)
    again.dry_build()
    assert again.parameters() and len(looks) == 1
