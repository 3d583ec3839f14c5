"""Sends the tests of the kernels to a GPU when `AITRAIN_TEST_OPS_DEVICE` names it: then they run natively."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def device() -> Iterator[None]:
    """Make every tensor of these tests on the device."""
    name = os.environ.get("AITRAIN_TEST_OPS_DEVICE")
    if name is None:
        yield
        return
    import torch

    torch.set_default_device(name)
    yield
    torch.set_default_device(None)


@pytest.fixture
def on_the_cpu(device: None) -> Iterator[None]:
    """Keep a test there that is about the CPU: what only it can refuse, or does bit for bit."""
    import torch

    with torch.device("cpu"):
        yield
