"""What every test runs under: one thread per process, and no network by accident."""

import os
from collections import Counter

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("WANDB_MODE", None)
os.environ["AITRAIN_LOCAL_SLURM"] = "/nowhere/local-slurm"  # not the one that somebody may be trying

# Kernels that are decorated while this is set run in Triton's interpreter: so tests/ops runs them without a GPU.
if not os.path.exists("/dev/nvidiactl") and not os.path.exists("/dev/kfd"):
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the jobs on Slurm, which wait most of their time, then with the files of many tests."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: ("test_slurm" not in item.path.name, -tests[item.path], str(item.path)))
