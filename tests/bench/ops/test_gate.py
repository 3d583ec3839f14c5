"""The gate lets rounding pass and stops everything else."""

from __future__ import annotations

import pytest
import torch

from aitrain.bench.ops import gate
from aitrain.bench.ops.gate import largest_error, relative_error


def test_relative_error_is_that_of_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.randn(37, 11, dtype=torch.float64)
    found = (exact * 1.01).float()
    expected = float((found.double() - exact).norm() / exact.norm())
    assert relative_error(found, exact) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(gate, "PIECE", 10)
    assert relative_error(found, exact) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "found",
    [[torch.ones(3)], [torch.ones(3), torch.ones(2)], [torch.ones(3), torch.tensor([1.0, float("nan"), 1.0])]],
    ids=["one is missing", "a wrong shape", "not a number"],
)
def test_not_comparable_is_infinitely_wrong(found: list[torch.Tensor]) -> None:
    assert largest_error(found, [torch.ones(3), torch.ones(3)]) == float("inf")


def test_the_worst_tensor_counts() -> None:
    exact = [torch.ones(4), torch.zeros(4)]
    assert largest_error([torch.ones(4), torch.tensor([0.0, 0.0, 0.0, 3.0])], exact) == 3.0
