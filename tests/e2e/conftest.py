"""The tiny model and data of the end-to-end tests, and a cache of prepared data of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import make_data, make_model


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared data goes here, and not into the cache of whoever runs the tests."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("AITRAIN_CACHE")
    os.environ["AITRAIN_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["AITRAIN_CACHE"]
    else:
        os.environ["AITRAIN_CACHE"] = before


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model; tests that break it copy it first."""
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of 13 conversations."""
    return make_data(tmp_path_factory.mktemp("data") / "train.jsonl")
