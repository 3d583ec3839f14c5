"""Every test here needs a GPU, and prepares its data in a cache of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from device_runs import DEVICE, FP32, Ended, train


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data goes here, and not into the cache of whoever runs the tests."""
    if DEVICE == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.fail("these tests need a GPU and torch sees none; AITRAIN_TEST_DEVICE=cpu tries them on the CPU")
    before = os.environ.get("AITRAIN_CACHE")
    os.environ["AITRAIN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["AITRAIN_CACHE"]
    if before is not None:
        os.environ["AITRAIN_CACHE"] = before


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Five steps in fp32 under ddp on the device: what every other way of running them must equal."""
    return train(tmp_path_factory.mktemp("reference") / "run", *FP32)
