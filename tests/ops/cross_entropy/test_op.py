"""The public function: reductions, passes, types, compiled code, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from aitrain.errors import ShapeError
from aitrain.ops.cross_entropy import op as subject
from aitrain.ops.cross_entropy.op import cross_entropy
from aitrain.ops.cross_entropy.terms import LossTerms

ALL = LossTerms(logit_scale=2.0, softcap=5.0, label_smoothing=0.2, z_loss=0.05)


@pytest.fixture(params=["reference", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("AITRAIN_OPS", request.param)
    return str(request.param)


def draw(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    targets = torch.tensor([[0, -100, 10], [5, 10, -100]])
    return torch.randn(2, 3, 11).to(dtype).requires_grad_(), targets


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


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 10, 255])
def test_any_number_may_be_the_one_that_is_ignored(backend: str, ignore_index: int) -> None:
    logits, targets = draw()
    targets = torch.where(targets == -100, ignore_index, targets)
    found = cross_entropy(logits, targets, ignore_index=ignore_index)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=ignore_index)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits))


def test_targets_and_logits_of_any_layout(backend: str) -> None:
    logits = draw()[0][0].detach()
    strided, same = torch.tensor([3, -7, 10, -7, -100, -7])[::2], torch.tensor(10).expand(3)
    for targets in (strided, same):
        torch.testing.assert_close(cross_entropy(logits, targets), F.cross_entropy(logits, targets))
    alone = cross_entropy(logits[0], torch.tensor(10), reduction="none")
    assert alone.shape == ()
    torch.testing.assert_close(alone, F.cross_entropy(logits[0], torch.tensor(10)))


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


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_backward_passes_with_different_upstream_gradients_add_up(backend: str, reduction: str) -> None:
    logits, targets = draw()
    loss = cross_entropy(logits, targets, reduction=reduction)
    upstream = torch.rand_like(loss) + 0.5
    loss.backward(upstream, retain_graph=True)
    assert logits.grad is not None
    once = logits.grad.clone()
    loss.backward(-3.0 * upstream, retain_graph=True)
    torch.testing.assert_close(logits.grad, -2.0 * once)
    loss.backward(2.0 * upstream)
    torch.testing.assert_close(logits.grad, torch.zeros_like(once), rtol=0.0, atol=1e-6)


def test_a_gradient_that_others_share_stays_whole(backend: str) -> None:
    logits, targets = draw()
    upstream = torch.rand(2, 3)
    before = upstream.clone()
    made = logits * 1.0
    # the addition hands one and the same gradient to both losses, and both give theirs to the same logits
    both = cross_entropy(made, targets, reduction="none") + cross_entropy(made, targets, reduction="none", terms=ALL)
    (found,) = torch.autograd.grad(both, logits, upstream)
    alone = [
        torch.autograd.grad(cross_entropy(logits, targets, reduction="none", terms=terms), logits, upstream)[0]
        for terms in (LossTerms(), ALL)
    ]
    torch.testing.assert_close(found, alone[0] + alone[1])
    assert torch.equal(upstream, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_the_same_bits_each_time(backend: str, reduction: str, dtype: torch.dtype) -> None:
    logits, targets = draw(dtype)
    losses = [cross_entropy(logits, targets, terms=ALL, reduction=reduction) for _ in range(2)]
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in losses]
    assert torch.equal(*losses) and torch.equal(*gradients)


def test_recomputed_under_checkpointing(backend: str) -> None:
    logits, targets = draw()
    found = checkpoint(lambda x: cross_entropy(x * 2.0, targets, terms=ALL), logits, use_reentrant=False)
    expected = cross_entropy(logits * 2.0, targets, terms=ALL)
    assert torch.equal(torch.autograd.grad(found, logits)[0], torch.autograd.grad(expected, logits)[0])


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


@pytest.mark.parametrize("layout", ["columns", "steps", "expanded"])
def test_in_place_keeps_to_its_own_numbers(backend: str, layout: str) -> None:
    memory = torch.randn(4, 14)
    before = memory.clone()
    made = {"columns": memory[:, :7], "steps": memory[:, ::2], "expanded": memory[0, :7].expand(4, 7)}[layout]
    targets = torch.tensor([0, -100, 6, 3])
    ours, theirs = made.detach().requires_grad_(), made.detach().clone().requires_grad_()
    loss = cross_entropy(ours, targets, reduction="sum", inplace=True)
    (found,) = torch.autograd.grad(loss, ours, torch.tensor(2.0))
    (expected,) = torch.autograd.grad(2.0 * F.cross_entropy(theirs, targets, reduction="sum"), theirs)
    torch.testing.assert_close(found, expected)
    assert torch.equal(memory[:, 7:], before[:, 7:])
    assert torch.equal(memory[:, :7], before[:, :7]) == (layout != "columns")


def test_in_place_without_a_gradient_leaves_the_logits(backend: str) -> None:
    logits, targets = draw()
    before = logits.detach().clone()
    with torch.no_grad():
        cross_entropy(logits, targets, inplace=True)
    cross_entropy(logits.detach(), targets, inplace=True)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("items", [8, 8.0, torch.tensor(8), torch.tensor([8.0])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_number_of_items(items: Any, dtype: torch.dtype) -> None:
    logits, targets = draw(dtype)
    found = cross_entropy(logits, targets, reduction="sum", num_items=items)
    assert found.shape == ()
    torch.testing.assert_close(found, cross_entropy(logits, targets, reduction="sum") / 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_items_and_no_rows_that_count_give_zero(backend: str, dtype: torch.dtype) -> None:
    logits, targets = draw(dtype)
    ignored = torch.full_like(targets, -100)
    loss = cross_entropy(logits, ignored, reduction="sum", num_items=torch.tensor(0))
    assert loss.item() == 0 and not torch.autograd.grad(loss, logits)[0].any()
    with torch.no_grad():
        assert cross_entropy(logits, ignored, reduction="sum", num_items=torch.tensor(0)).item() == 0
    assert not cross_entropy(logits, targets, reduction="sum", num_items=0).isfinite()  # a count that is wrong shows


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_autocast_changes_nothing(backend: str, reduction: str, dtype: torch.dtype) -> None:
    logits, targets = draw(dtype)
    expected = cross_entropy(logits, targets, terms=ALL, reduction=reduction)
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    with torch.autocast("cpu", torch.bfloat16):
        inside = cross_entropy(logits, targets, terms=ALL, reduction=reduction)
        (found,) = torch.autograd.grad(inside.sum(), logits)
    assert inside.dtype is torch.float32 and torch.equal(inside, expected) and torch.equal(found, gradient)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_without_gradients_nothing_is_kept(backend: str, reduction: str, context: Any) -> None:
    logits, targets = draw()
    expected = cross_entropy(logits, targets, terms=ALL, reduction=reduction).detach()
    with context():
        found = cross_entropy(logits, targets, terms=ALL, reduction=reduction)
    torch.testing.assert_close(found, expected)
    assert found.grad_fn is None


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_all_ignored_is_zero(backend: str, reduction: str) -> None:
    logits, targets = draw()
    loss = cross_entropy(logits, torch.full_like(targets, -100), terms=ALL, reduction=reduction).sum()
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_a_second_derivative_is_refused(backend: str) -> None:
    logits, targets = draw()
    loss = cross_entropy(logits, targets, reduction="none").sum()
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="has no backward pass"):
        gradient.sum().backward()


def test_opcheck(backend: str) -> None:
    logits = torch.randn(3, 7, requires_grad=True)
    targets, scale = torch.tensor([0, -1, 6]), torch.tensor(0.5)
    torch.library.opcheck(subject._summed_op, (logits, targets, scale, [1.0, 0.0, 0.1, 0.0]))
    torch.library.opcheck(subject._statistics_op, (logits, targets, [1.0, 2.0], True, True))
    saved = [x.detach() for x in subject._statistics_op(logits, targets, [1.0, 2.0], True, True)]
    inputs = (logits.detach(), targets, *saved, *torch.randn(4, 3), [1.0, 2.0], True, True)
    torch.library.opcheck(subject._gradient_op, inputs)


SCHEMA_AND_SHAPES = ("test_schema", "test_autograd_registration", "test_faketensor")
"""What the layout of the input can change; a trace of the whole takes a second."""


@pytest.mark.parametrize("kind", ["fp16", "turned", "no rows", "expanded"])
def test_opcheck_of_other_inputs(backend: str, kind: str) -> None:
    count = 0 if kind == "no rows" else 3
    made = {"turned": torch.randn(7, count).t(), "expanded": torch.randn(7).expand(count, 7)}
    logits = made.get(kind, torch.randn(count, 7)).to(torch.float16 if kind == "fp16" else torch.float32)
    targets, upstream = torch.tensor([0, -1, 6])[:count], torch.randn(4, count)
    terms = [2.0, 5.0]
    saved = subject._statistics_op(logits, targets, terms, True, True)
    for op, inputs in (
        (subject._summed_op, (logits.detach().requires_grad_(), targets, torch.tensor(0.5), [*terms, 0.2, 0.05])),
        (subject._statistics_op, (logits.detach().requires_grad_(), targets, terms, True, True)),
        (subject._gradient_op, (logits, targets, *saved, *upstream, terms, True, True)),
    ):
        torch.library.opcheck(op, inputs, test_utils=SCHEMA_AND_SHAPES)


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


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_for_any_shape(monkeypatch: pytest.MonkeyPatch, reduction: str) -> None:
    monkeypatch.setenv("AITRAIN_OPS", "reference")  # the compiler sees one and the same op around both
    torch._dynamo.reset()
    dtype = torch.float16 if reduction == "mean" else torch.float32  # halves take another way through the op

    def function(x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(x, targets, terms=ALL, reduction=reduction).sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for count, classes in ((4, 7), (6, 9), (0, 5)):
        logits, targets = torch.randn(count, classes).to(dtype).requires_grad_(), torch.randint(classes, (count,))
        targets[1:2] = -100
        found, right = compiled(logits, targets), function(logits, targets)
        torch.testing.assert_close(found, right)
        torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(right, logits))


def test_compiled_in_place_and_divided(backend: str) -> None:
    torch._dynamo.reset()
    logits, targets = draw()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(x: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        return cross_entropy(x * 1.0, targets, reduction="sum", inplace=True, num_items=items)

    found = function(logits, torch.tensor(3.0))
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / 3.0
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits))


@pytest.mark.parametrize("wide", [torch.float64, torch.float32])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_fake_tensors(backend: str, reduction: str, wide: torch.dtype) -> None:
    dtype = torch.bfloat16 if wide is torch.float32 else wide
    with FakeTensorMode() as mode:
        logits = torch.empty(2, 3, 11, dtype=dtype, requires_grad=True)
        out = cross_entropy(logits, torch.empty(2, 3, dtype=torch.int64), reduction=reduction)
        (gradient,) = torch.autograd.grad(out.sum(), logits)
    assert out.fake_mode is mode and out.shape == ((2, 3) if reduction == "none" else ()) and out.dtype is wide
    assert gradient.shape == (2, 3, 11) and gradient.dtype is dtype


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reduction": "avg"}, "reduction=avg is unknown: write sum, mean or none"),
        ({"num_items": 3.0}, "num_items needs reduction=sum, not mean"),
        ({"reduction": "none", "inplace": True}, "inplace=True needs a summed loss"),
        ({"targets": torch.zeros(3, 2, dtype=torch.int64)}, r"targets must be int64 \(2, 3\)"),
        ({"targets": torch.zeros(2, 3)}, "targets must be int64"),
        ({"targets": torch.full((2, 3), 11)}, r"targets\[0\]=11 is outside 0..10"),
        ({"logits": torch.zeros(2, 3, 11, dtype=torch.int64)}, "one per row of floating-point logits"),
        ({"logits": torch.zeros(2, 3, 0)}, "have no classes"),
        ({"logits": torch.tensor(1.0), "targets": torch.tensor(0)}, r"logits \(\) have no classes"),
        ({"targets": torch.zeros(2, 3, dtype=torch.int32)}, r"not torch.int32 \(2, 3\)"),
        ({"targets": torch.full((2, 3), -1)}, r"targets\[0\]=-1 is outside 0..10 and not ignore_index=-100"),
        ({"reduction": "sum", "num_items": torch.ones(2)}, r"num_items must be one number, not a tensor \(2,\)"),
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
