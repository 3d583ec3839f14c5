"""A whole configuration around a strategy, and a small task to train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aitrain.config import RunConfig
from aitrain.config.adapter import NoAdapter
from aitrain.config.data import Records
from aitrain.config.logger import Jsonl
from aitrain.config.optim import AdamW
from aitrain.config.schedule import Constant
from aitrain.config.strategy import Ddp
from aitrain.config.task import Sft


@pytest.fixture
def run_config() -> Callable[..., RunConfig]:
    """Make a configuration; words replace whole groups."""

    def make(**groups: Any) -> RunConfig:
        start: dict[str, Any] = {
            "task": Sft(),
            "data": Records(path="none.jsonl"),
            "adapter": NoAdapter(),
            "optim": AdamW(lr=1e-2),
            "schedule": Constant(),
            "strategy": Ddp(),
            "logger": Jsonl(),
        }
        return RunConfig(**(start | groups))

    return make
