"""The public function: reductions, passes, types, compiled code, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from aitrain.errors import ShapeError
from aitrain.ops.cross_entropy import op as subject
from aitrain.ops.cross_entropy.op import cross_entropy
from aitrain.ops.cross_entropy.terms import LossTerms

ALL = LossTerms(logit_scale=2.0, softcap=5.0, label_smoothing=0.2, z_loss=0.05)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AITRAIN_OPS", request.param)
    return str(request.param)


def draw(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    targets = torch.tensor([[0, -100, 10], [5, 10, -100]])
    return torch.randn(2, 3, 11).to(dtype).requires_grad_(), targets


@pytest.mark.parametrize("backend", ["reference", "triton"], indirect=True)
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_torchs_own(backend: str, reduction: str, smoothing: float) -> None:
    logits, targets = draw()
    terms = LossTerms(label_smoothing=smoothing)
    found = cross_entropy(logits, targets, terms=terms, reduction=reduction)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction, label_smoothing=smoothing)
    torch.testing.assert_close(found.flatten(), expected.flatten())
    upstream = torch.rand_like(found)
    ours = torch.autograd.grad(found, logits, upstream)
    theirs = torch.autograd.grad(expected, logits, upstream.view(expected.shape))
    torch.testing.assert_close(ours, theirs)


def test_gradcheck() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, -100, 4, 2])
    for reduction in ("sum", "mean", "none"):
        assert torch.autograd.gradcheck(
            lambda x, r=reduction: cross_entropy(x, targets, terms=ALL, reduction=r), logits
        )


@pytest.mark.parametrize("backend", ["reference", "triton"], indirect=True)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_two_backward_passes_and_a_second_use(backend: str, reduction: str) -> None:
    logits, targets = draw()
    loss = cross_entropy(logits, targets, reduction=reduction).sum() + (logits * 0.5).sum()
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0].clone()
    second = torch.autograd.grad(loss, logits)[0]
    assert torch.equal(first, second)
    logits2 = logits.detach().requires_grad_()
    expected = F.cross_entropy(logits2.flatten(0, 1), targets.flatten(), reduction="sum") + (logits2 * 0.5).sum()
    torch.testing.assert_close(first, torch.autograd.grad(expected, logits2)[0])


@pytest.mark.parametrize("backend", ["reference", "triton"], indirect=True)
def test_in_place_is_used_once_and_says_so(backend: str) -> None:
    logits, targets = draw()
    expected = torch.autograd.grad(cross_entropy(logits, targets, reduction="sum"), logits)[0]
    made = logits * 1.0
    memory = made.data_ptr()
    loss = cross_entropy(made, targets, reduction="sum", inplace=True)
    torch.testing.assert_close(torch.autograd.grad(loss, logits, retain_graph=True)[0], expected)
    assert made.data_ptr() == memory
    with pytest.raises(RuntimeError, match="no second backward pass"):
        torch.autograd.grad(loss, logits)
    needed = logits.exp()  # autograd keeps what exp gave
    loss = cross_entropy(needed, targets, reduction="sum", inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_number_of_items_that_is_a_tensor() -> None:
    logits, targets = draw()
    found = cross_entropy(logits, targets, reduction="sum", num_items=torch.tensor(8))
    torch.testing.assert_close(found, cross_entropy(logits, targets, reduction="sum") / 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_are_in_float32(dtype: torch.dtype) -> None:
    logits, targets = draw(dtype)
    for reduction in ("sum", "mean", "none"):
        found = cross_entropy(logits, targets, reduction=reduction)
        exact = F.cross_entropy(logits.double().flatten(0, 1), targets.flatten(), reduction=reduction)
        assert found.dtype is torch.float32
        torch.testing.assert_close(found.double().flatten(), exact.flatten(), rtol=1e-5, atol=1e-5)


def test_small_gradients_of_halves_survive_a_loss_scale() -> None:
    logits = torch.zeros(4, 1000, dtype=torch.float16, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(4, dtype=torch.int64), reduction="sum", num_items=1e5)
    (loss * 2.0**16).backward()
    assert logits.grad is not None and logits.grad[0, 1].item() == pytest.approx(2.0**16 / 1e8, rel=1e-2)


def test_autocast_changes_nothing() -> None:
    logits, targets = draw()
    with torch.autocast("cpu", torch.bfloat16):
        inside = cross_entropy(logits, targets)
    assert inside.dtype is torch.float32 and torch.equal(inside, cross_entropy(logits, targets))


def test_without_gradients_nothing_is_kept() -> None:
    logits, targets = draw()
    expected = cross_entropy(logits, targets)
    with torch.no_grad():
        found = cross_entropy(logits, targets)
    torch.testing.assert_close(found, expected.detach())
    assert found.grad_fn is None


def test_all_ignored_is_zero() -> None:
    logits, targets = draw()
    loss = cross_entropy(logits, torch.full_like(targets, -100))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("backend", ["reference", "triton"], indirect=True)
def test_opcheck(backend: str) -> None:
    logits = torch.randn(3, 7, requires_grad=True)
    targets, scale = torch.tensor([0, -1, 6]), torch.tensor(0.5)
    torch.library.opcheck(subject._summed_op, (logits, targets, scale, [1.0, 0.0, 0.1, 0.0]))
    torch.library.opcheck(subject._statistics_op, (logits, targets, [1.0, 2.0], True, True))
    saved = [x.detach() for x in subject._statistics_op(logits, targets, [1.0, 2.0], True, True)]
    inputs = (logits.detach(), targets, *saved, *torch.randn(4, 3), [1.0, 2.0], True, True)
    torch.library.opcheck(subject._gradient_op, inputs)


@pytest.mark.parametrize("backend", ["reference", "triton"], indirect=True)
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_compiled_code_equals_eager(backend: str, reduction: str) -> None:
    torch._dynamo.reset()
    logits, targets = draw()

    def function(x: torch.Tensor) -> Any:
        return (cross_entropy(x, targets, terms=ALL, reduction=reduction) * 3).sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    right, found = function(logits), compiled(logits)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(right, logits))


def test_fake_tensors() -> None:
    with FakeTensorMode() as mode:
        logits = torch.empty(2, 3, 11, dtype=torch.bfloat16)
        out = cross_entropy(logits, torch.empty(2, 3, dtype=torch.int64), reduction="none")
    assert out.fake_mode is mode and out.shape == (2, 3) and out.dtype is torch.float32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reduction": "avg"}, "reduction=avg is unknown: write sum, mean or none"),
        ({"num_items": 3.0}, "num_items goes with reduction=sum, not mean"),
        ({"reduction": "none", "inplace": True}, "inplace=True goes with a summed loss"),
        ({"targets": torch.zeros(3, 2, dtype=torch.int64)}, r"targets must be int64 \(2, 3\)"),
        ({"targets": torch.zeros(2, 3)}, "targets must be int64"),
        ({"targets": torch.full((2, 3), 11)}, r"targets\[0\]=11 is outside 0..10"),
        ({"logits": torch.zeros(2, 3, 11, dtype=torch.int64)}, "one per row of floating-point logits"),
        ({"logits": torch.zeros(2, 3, 0)}, "have no classes"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], said: str) -> None:
    logits, targets = draw()
    with pytest.raises(ShapeError, match=said):
        cross_entropy(**{"logits": logits, "targets": targets, **change})


@pytest.mark.parametrize(
    ("words", "said"),
    [({"label_smoothing": 1.0}, "label_smoothing=1.0"), ({"softcap": -1.0}, "softcap"), ({"z_loss": -1.0}, "z_loss")],
)
def test_terms_have_rules(words: dict[str, float], said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        LossTerms(**words)
