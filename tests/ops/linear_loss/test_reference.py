"""The reference equals the formulas written with torch's own losses, in float64."""

from __future__ import annotations

import pytest
import torch

from aitrain.ops.linear_loss.reference import linear_row_losses, linear_row_statistics
from ops.linear_loss.plain import ANY_TERMS, SCALED, row_losses, row_statistics, some_targets


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("terms", ANY_TERMS)
def test_losses_and_their_gradients(terms: str, bias: bool) -> None:
    hidden, weight, offset = (torch.randn(*size, dtype=torch.float64) for size in ((9, 5), (11, 5), (11,)))
    targets, leaves = some_targets(9, 11), [hidden, weight, *([offset] if bias else [])]
    for tensor in leaves:
        tensor.requires_grad_()
    given = offset if bias else None
    ours = linear_row_losses(hidden, weight, targets, given, ANY_TERMS[terms])
    plain = row_losses(hidden, weight, targets, given, ANY_TERMS[terms])
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(9, dtype=torch.float64)
    for mine, right in zip(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(plain, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)


def test_statistics() -> None:
    hidden, weight, bias = (torch.randn(*size, dtype=torch.float64) for size in ((9, 5), (11, 5), (11,)))
    targets = some_targets(9, 11, ignore_index=3)
    ours = linear_row_statistics(hidden, weight, targets, bias, SCALED, ignore_index=3)
    plain = row_statistics(hidden, weight, targets, bias, SCALED, ignore_index=3)
    for mine, right in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)
