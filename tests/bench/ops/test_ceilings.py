"""The limit of a case is the larger of what its bytes and its operations take."""

from __future__ import annotations

import pytest
import torch

from aitrain.bench.ops.case import Work
from aitrain.bench.ops.ceilings import Ceilings, measure, surroundings

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("work", "seconds"),
    [(Work(bytes=200), 2.0), (Work(flops=50), 5.0), (Work(bytes=200, flops=50), 5.0), (Work(), 0.0)],
)
def test_least_time(work: Work, seconds: float) -> None:
    assert Ceilings(copy_bytes_per_s=100, flops_per_s=10).least_s(work) == seconds


def test_ceilings_are_measured_and_told() -> None:
    ceilings = measure(CPU)
    assert ceilings.copy_bytes_per_s > 1e8 and ceilings.flops_per_s > 1e8
    around = surroundings(CPU, ceilings)
    assert around["torch"] == torch.__version__ and "CPU figures" in around["driver"]
    assert all(around[package] for package in ("liger-kernel", "quack-kernels", "torchao", "triton"))
