"""Model folders that tests may break."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aitrain.config import RunConfig
from aitrain.config.adapter import Adapter
from aitrain.config.data import Records
from aitrain.config.export import Export, ExportDtype
from aitrain.config.logger import Jsonl
from aitrain.config.model import Model
from aitrain.config.optim import AdamW
from aitrain.config.schedule import Cosine
from aitrain.config.strategy import Ddp
from aitrain.config.task import Sft
from aitrain.models.assets import resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped tiny model."""
    return Path(shutil.copytree(resolve("asset:tiny-llama"), tmp_path / "tiny"))


@pytest.fixture
def run_config() -> Callable[[Model, Adapter], RunConfig]:
    """Make a whole configuration around a model and an adapter; it exports in fp32, so that logits can be compared."""

    def make(model: Model, adapter: Adapter) -> RunConfig:
        return RunConfig(
            task=Sft(),
            model=model,
            data=Records(path="/somewhere/private/notes.jsonl"),
            adapter=adapter,
            optim=AdamW(lr=1e-3),
            schedule=Cosine(),
            strategy=Ddp(),
            logger=Jsonl(),
            export=Export(dtype=ExportDtype.fp32),
        )

    return make
