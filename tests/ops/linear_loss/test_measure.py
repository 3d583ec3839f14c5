"""Losses and predictions for evaluation equal those of the whole logits."""

from __future__ import annotations

import pytest
import torch

from aitrain.errors import ShapeError
from aitrain.ops.linear_loss.measure import linear_predictions
from ops.linear_loss.plain import SCALED, logits_of, row_losses, some_targets
from ops.passes import draw


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["reference", "triton"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("AITRAIN_OPS", request.param)
    return str(request.param)


@pytest.mark.parametrize("rows", [0, 1, 35])
def test_losses_and_classes(mode: str, rows: int) -> None:
    hidden, weight, bias = draw(rows, 6), draw(19, 6), draw(19)
    targets = some_targets(rows, 19)
    losses, best = linear_predictions(hidden, weight, targets, bias=bias, terms=SCALED, chunk_bytes=1)
    torch.testing.assert_close(losses, row_losses(hidden, weight, targets, bias, SCALED))
    right = logits_of(hidden, weight, bias, SCALED).argmax(1)
    assert torch.equal(best, torch.where(targets < 0, -1, right))


def test_shape_of_the_targets_and_no_gradient(mode: str) -> None:
    hidden, weight = draw(2, 3, 6).requires_grad_(), draw(19, 6).requires_grad_()
    targets = some_targets(6, 19).view(2, 3)
    losses, best = linear_predictions(hidden, weight, targets)
    assert losses.shape == best.shape == (2, 3) and best.dtype == torch.int64
    assert not losses.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_decides_the_type_as_it_does_for_torch(dtype: torch.dtype) -> None:
    hidden, weight, targets = draw(9, 6, dtype=dtype), draw(19, 6, dtype=dtype), some_targets(9, 19)
    with torch.autocast(hidden.device.type, torch.bfloat16):
        losses, best = linear_predictions(hidden, weight, targets)
        logits = torch.nn.functional.linear(hidden, weight)
    assert losses.dtype == torch.promote_types(logits.dtype, torch.float32)
    assert torch.equal(best, torch.where(targets < 0, -1, logits.argmax(1)))


def test_what_does_not_fit_is_refused() -> None:
    hidden, weight, targets = draw(4, 6), draw(19, 6), some_targets(4, 19)
    with pytest.raises(ShapeError, match=r"must be \(\.\.\., H\) and \(V, H\)"):
        linear_predictions(hidden, weight[:, :5], targets)
    with pytest.raises(ShapeError, match="one per row"):
        linear_predictions(hidden, weight, targets[:2])
    with pytest.raises(ShapeError, match="cast one of them, or use autocast"):
        linear_predictions(hidden, weight.half(), targets)
