"""Losses and predictions for evaluation equal those of the whole logits."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from aitrain.errors import ShapeError
from aitrain.ops.cross_entropy.terms import LossTerms
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


def test_a_negative_scale_turns_the_order_round() -> None:
    hidden, weight, targets = draw(9, 6), draw(19, 6), some_targets(9, 19, ignored=0.0)
    best = linear_predictions(hidden, weight, targets, terms=LossTerms(logit_scale=-1.0))[1]
    assert torch.equal(best, (hidden @ weight.T).argmin(1))


def test_rows_that_are_ignored_may_hold_anything(mode: str) -> None:
    hidden, weight, targets = draw(35, 6), draw(19, 6), some_targets(35, 19)
    run = partial(linear_predictions, weight=weight, targets=targets, valid_rows=int((targets >= 0).sum()))
    right = run(hidden)
    hidden[targets < 0] = float("nan")
    assert all(torch.equal(a, b) for a, b in zip(run(hidden), right, strict=True))


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


def test_registered_op() -> None:
    args = draw(20, 6), draw(19, 6), draw(19), torch.arange(20) - 1, [0.7, 5.0, 0.0, 0.0], 1, None, torch.float32
    torch.library.opcheck(torch.ops.aitrain.linear_predictions, args)


def test_compiled_whole() -> None:
    torch._dynamo.reset()
    hidden, weight, targets = draw(20, 6), draw(19, 6), some_targets(20, 19)
    compiled = torch.compile(linear_predictions, fullgraph=True, backend="aot_eager")
    for mine, right in zip(compiled(hidden, weight, targets), linear_predictions(hidden, weight, targets), strict=True):
        torch.testing.assert_close(mine, right)


def test_what_does_not_fit_is_refused() -> None:
    hidden, weight, targets = draw(4, 6), draw(19, 6), some_targets(4, 19)
    with pytest.raises(ShapeError, match=r"must be \(\.\.\., H\) and \(V, H\)"):
        linear_predictions(hidden, weight[:, :5], targets)
    with pytest.raises(ShapeError, match="one per row"):
        linear_predictions(hidden, weight, targets[:2])
    with pytest.raises(ShapeError, match="cast one of them, or use autocast"):
        linear_predictions(hidden, weight.half(), targets)
