"""What every test runs under: one thread per process, no network by accident, and a cache of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("WANDB_MODE", None)
os.environ.pop("COLUMNS", None)  # tables are as wide as they like where there is no terminal
os.environ["AITRAIN_LOCAL_SLURM"] = "/nowhere/local-slurm"  # not the one that somebody may be trying

# Kernels that are decorated while this is set run in Triton's interpreter: so tests/ops runs them without a GPU.
if not os.path.exists("/dev/nvidiactl") and not os.path.exists("/dev/kfd"):
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared data goes here, and not into the cache of whoever runs the tests.

    The only such fixture: with one per folder, a worker that has tests of two folders would have two caches at once.
    """
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AITRAIN_CACHE", str(folder))
        yield folder
