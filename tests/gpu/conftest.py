"""Every test here needs a GPU."""

from __future__ import annotations

import pytest
from device_runs import DEVICE, FP32, Ended, train


@pytest.fixture(scope="session", autouse=True)
def device() -> None:
    """Fail where there is no GPU to test."""
    if DEVICE == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.fail("these tests need a GPU and torch sees none; AITRAIN_TEST_DEVICE=cpu tries them on the CPU")


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Five steps in fp32 under ddp on the device: what every other way of running them must equal."""
    return train(tmp_path_factory.mktemp("reference") / "run", *FP32)
