"""The kernels on the GPU itself, in bf16: as near to float64 as torch is, and the same bits each time."""

from __future__ import annotations

import pytest
import torch
from every_op import CUDA, answer, cases
from ops.tolerance import assert_close_as_torch

pytestmark = pytest.mark.gpu
CASES = dict(cases())


@pytest.mark.parametrize("name", CASES)
def test_as_near_as_torch(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    inputs = case.inputs(CUDA)
    reference = next(entry.name for entry in case.providers if entry.name in ("eager", "torch foreach"))
    outputs = len(case.upstream) or 1
    exact = case.exact(inputs)
    for number, (ours, torchs, wide) in enumerate(
        zip(answer(case, "ours", inputs), answer(case, reference, inputs), exact, strict=True)
    ):
        kept = ours if ours.dtype == torchs.dtype else ours.to(torchs.dtype)  # a loss may come in fp32
        assert_close_as_torch(kept, torchs, wide, factor=2.0 if number < outputs else 3.0)


@pytest.mark.parametrize("name", CASES)
def test_same_bits_each_time(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    inputs = case.inputs(CUDA)
    for one, other in zip(answer(case, "ours", inputs), answer(case, "ours", inputs), strict=True):
        assert torch.equal(one, other)
