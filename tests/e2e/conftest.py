"""The tiny model and data of the end-to-end tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import make_data, make_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model; tests that break it copy it first."""
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of 13 conversations."""
    return make_data(tmp_path_factory.mktemp("data") / "train.jsonl")
