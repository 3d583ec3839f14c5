"""The incoming gradient, brought into a finished one: interpreted kernel and plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from aitrain.ops.cross_entropy.dispatch import times_upstream_

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])


@pytest.fixture(params=["triton", "reference"], autouse=True)
def _backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("AITRAIN_OPS", request.param)


@DTYPES
@pytest.mark.parametrize("factor", [0.0, -2.5, 1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("shape", [(0, 3), (3, 5), (3, 8000)])
def test_every_element_is_multiplied(shape: tuple[int, int], factor: float, dtype: torch.dtype) -> None:
    gradient = torch.randn(shape).to(dtype)
    expected = gradient * factor
    found = times_upstream_(gradient, torch.tensor(factor))
    assert found is gradient
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_rows_apart_leave_what_lies_between_alone() -> None:
    whole = torch.ones(4, 10)
    times_upstream_(whole[:, :6], torch.tensor(3.0))
    assert whole[:, :6].eq(3).all() and whole[:, 6:].eq(1).all()


def test_a_gradient_of_one_leaves_the_memory_alone() -> None:
    if not torch.tensor(0.0).is_cuda:
        gradient = torch.ones(4, 10, dtype=torch.float64)
        times_upstream_(gradient, torch.tensor(1.0))
        assert gradient._version == 0
