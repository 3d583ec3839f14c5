"""Autograd and the registered ops: several passes, shared gradients, frozen inputs, compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from aitrain.ops.cross_entropy.terms import LossTerms
from aitrain.ops.linear_loss import autograd as subject
from aitrain.ops.linear_loss.measure import linear_predictions
from aitrain.ops.linear_loss.op import info_nce, linear_cross_entropy, linear_logprobs

MODES = pytest.mark.parametrize("mode", ["reference", "triton"])


@pytest.fixture(autouse=True)
def _mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "mode" in request.fixturenames:
        if request.getfixturevalue("mode") == "triton":
            pytest.importorskip("triton", reason="Triton is not installed")
        monkeypatch.setenv("AITRAIN_OPS", request.getfixturevalue("mode"))


def draw(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(20, 6).to(dtype).requires_grad_()
    weight = torch.randn(11, 6).to(dtype).requires_grad_()
    targets = torch.randint(11, (20,))
    targets[::4] = -100
    return hidden, weight, targets


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")


def ours(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return linear_cross_entropy(hidden, weight, targets, reduction="sum", chunk_bytes=1)


@MODES
def test_two_backward_passes_give_the_same(mode: str) -> None:
    hidden, weight, targets = draw()
    loss = ours(hidden, weight, targets)
    first = [g.clone() for g in torch.autograd.grad(loss, (hidden, weight), torch.tensor(2.0), retain_graph=True)]
    second = torch.autograd.grad(loss, (hidden, weight), torch.tensor(2.0))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    right = torch.autograd.grad(plain(hidden, weight, targets), (hidden, weight), torch.tensor(2.0))
    torch.testing.assert_close(first, list(right), rtol=1e-5, atol=1e-5)


@MODES
def test_a_weight_that_is_used_twice_gets_both_gradients(mode: str) -> None:
    """A tied embedding: the same weight makes the hidden states and the logits."""
    _, weight, targets = draw()
    ids = targets.clamp(min=0)
    found, right = (
        torch.autograd.grad(loss(F.embedding(ids, weight).tanh(), weight, targets), weight)[0] for loss in (ours, plain)
    )
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


@MODES
@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_inputs(mode: str, frozen: str) -> None:
    hidden, weight, targets = draw()
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    free = weight if frozen == "hidden" else hidden
    found, right = (torch.autograd.grad(loss(hidden, weight, targets), free)[0] for loss in (ours, plain))
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


@MODES
def test_the_same_bits_each_time(mode: str) -> None:
    made = []
    for _ in range(2):
        hidden, weight, targets = draw()
        loss = ours(hidden, weight, targets)
        made.append([loss.detach(), *torch.autograd.grad(loss, (hidden, weight))])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_an_incoming_gradient_is_not_written_to() -> None:
    hidden, weight, targets = draw()
    upstream = torch.tensor(3.0)
    torch.autograd.grad(ours(hidden, weight, targets), (hidden, weight), upstream)
    assert upstream.item() == 3.0
    rows = torch.ones(20)
    torch.autograd.grad(linear_logprobs(hidden, weight, targets).logprobs, hidden, rows)
    assert torch.equal(rows, torch.ones(20))


@MODES
def test_compiled_code_equals_eager(mode: str) -> None:
    torch._dynamo.reset()
    hidden, weight, targets = draw()

    def function(h: torch.Tensor, w: torch.Tensor) -> Any:
        found = linear_logprobs(h.sin(), w, targets)
        return ours(h.sin(), w, targets) * 2 + (found.logprobs - 0.1 * found.entropy).sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    right, found = function(hidden, weight), compiled(hidden, weight)
    torch.testing.assert_close(found, right)
    expected = torch.autograd.grad(right, (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad(found, (hidden, weight)), expected, rtol=1e-5, atol=1e-5)


def test_fake_tensors_have_its_shapes() -> None:
    with FakeTensorMode() as mode:
        hidden = torch.empty(2, 5, 6, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.empty(11, 6, dtype=torch.bfloat16, requires_grad=True)
        targets = torch.empty(2, 5, dtype=torch.int64)
        each = linear_cross_entropy(hidden, weight, targets, reduction="none")
        mean = linear_cross_entropy(hidden, weight, targets)
        said = linear_logprobs(hidden, weight, targets)
        contrast = info_nce(hidden[0], weight, 20.0)
        classes = linear_predictions(hidden, weight, targets)
        total = sum(x.sum() for x in (each, mean, *said, contrast))
        for_hidden, for_weight = torch.autograd.grad(total, (hidden, weight))
    for out, shape in ((each, (2, 5)), (mean, ()), (contrast, ()), *((x, (2, 5)) for x in (*said, classes[0]))):
        assert out.fake_mode is mode and out.shape == shape and out.dtype is torch.float32
    assert classes[1].shape == (2, 5) and classes[1].dtype is torch.int64
    assert for_hidden.shape == hidden.shape and for_weight.shape == weight.shape
    assert for_hidden.dtype is for_weight.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("mode", "dtype", "wanted"),
    [
        ("reference", torch.float32, [True, True, True]),
        ("triton", torch.float16, [False, True, False]),
    ],
)
def test_opcheck(mode: str, dtype: torch.dtype, wanted: list[bool]) -> None:
    hidden, weight, targets = draw(dtype)
    bias = torch.randn(11).to(dtype).requires_grad_() if wanted[2] else None
    for leaf, free in zip((hidden, weight), wanted[:2], strict=True):
        leaf.requires_grad_(free)
    labels = torch.where(targets < 0, -1, targets)
    tensors = (hidden, weight, bias, labels)
    flat = [[0.7, 5.0, 0.1, 0.01], 1, None, dtype]
    near: dict[str, Any] = {"rtol": 2e-3, "atol": 2e-3}
    if mode == "triton":  # what the compiler makes of the op is the same, and takes seconds in the interpreter
        near["test_utils"] = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(subject._loss_op, (*tensors, torch.tensor(0.5), *flat, wanted), **near)
    torch.library.opcheck(subject._statistics_op, (*tensors, *flat, True, True), **near)
    fixed = [None if x is None else x.detach() for x in tensors]
    saved = [x.detach() for x in subject._statistics_op(*tensors, *flat, True, True)]
    upstream = [torch.randn(20) for _ in saved]
    torch.library.opcheck(
        subject._statistics_backward_op, (*fixed, *saved, *upstream, *flat, True, True, wanted), **near
    )


@MODES
@pytest.mark.parametrize("statistics", [False, True])
def test_gradients_add_up_where_they_are_kept(mode: str, statistics: bool) -> None:
    """Autograd keeps the first gradient it is handed, not a copy: the second must not be the same memory."""
    hidden, weight, targets = draw()
    loss = linear_logprobs(hidden, weight, targets).entropy.sum() if statistics else ours(hidden, weight, targets)
    loss.backward(torch.tensor(3.0), retain_graph=True)
    once = [leaf.grad.clone() for leaf in (hidden, weight)]
    loss.backward(torch.tensor(3.0))
    assert all(torch.equal(leaf.grad, 2 * first) for leaf, first in zip((hidden, weight), once, strict=True))


@MODES
def test_hidden_and_weight_serve_other_terms_too(mode: str) -> None:
    found, right = [], []
    for gradients, loss in ((found, ours), (right, plain)):
        hidden, weight, targets = draw()
        rows = hidden * 1.0
        total = loss(rows, weight, targets) + rows.sum() + (rows * rows).sum() + weight.square().sum() + weight.sum()
        gradients += torch.autograd.grad(total + loss(rows, weight, targets.flip(0)), (hidden, weight))
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_weight_costs_no_product(monkeypatch: pytest.MonkeyPatch, frozen: bool, statistics: bool) -> None:
    done = []
    original = subject.chunks._add_product
    monkeypatch.setattr(subject.chunks, "_add_product", lambda *given: done.append(1) or original(*given))
    hidden, weight, targets = draw()
    weight.requires_grad_(not frozen)
    function = linear_logprobs if statistics else linear_cross_entropy
    out = function(hidden, weight, targets)
    (out[0].sum() if statistics else out).backward()
    assert bool(done) is not frozen and (weight.grad is None) is frozen


def test_the_weight_may_be_away_when_the_backward_pass_begins() -> None:
    """A sharding strategy takes it back after the forward pass."""
    hidden, weight, targets = draw()
    right = torch.autograd.grad(ours(hidden, weight, targets), (hidden, weight))
    loss = ours(hidden, weight, targets)
    weight.data.fill_(float("nan"))
    assert all(map(torch.equal, torch.autograd.grad(loss, (hidden, weight)), right))


def test_without_gradients_nothing_is_kept() -> None:
    hidden, weight, targets = draw()
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, targets).grad_fn is None
        assert all(x.grad_fn is None for x in linear_logprobs(hidden, weight, targets))


def losses(kind: str) -> Callable[..., torch.Tensor]:
    """Return a scalar loss of hidden, weight, bias and targets."""
    fixed: dict[str, Any] = {"terms": LossTerms(0.7, 5.0, 0.1, 0.01), "chunk_bytes": 1}
    if kind == "none":
        return lambda h, w, b, t: linear_cross_entropy(h, w, t, bias=b, reduction=kind, **fixed).square().sum()
    return lambda h, w, b, t: linear_cross_entropy(h, w, t, bias=b, reduction=kind, **fixed)


@pytest.mark.parametrize(
    ("kind", "frozen"),
    [
        *(("mean", frozen) for frozen in ("nothing", "hidden", "weight", "bias", "everything")),
        *(("none", frozen) for frozen in ("nothing", "weight")),
    ],
)
def test_compiled_code_knows_what_is_frozen(kind: str, frozen: str) -> None:
    torch._dynamo.reset()
    hidden, weight, targets = draw()
    leaves = {"hidden": hidden, "weight": weight, "bias": torch.randn(11, requires_grad=True)}
    free = [leaf for name, leaf in leaves.items() if frozen not in (name, "everything")]
    for name, leaf in leaves.items():
        leaf.requires_grad_(frozen not in (name, "everything"))
    function = losses(kind)
    right = function(*leaves.values(), targets)
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(*leaves.values(), targets)
    torch.testing.assert_close(found, right)
    assert found.requires_grad is bool(free)
    if free:
        for mine, theirs in zip(torch.autograd.grad(found, free), torch.autograd.grad(right, free), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_compiled_once_for_any_number_of_rows() -> None:
    torch._dynamo.reset()
    graphs, counter = set(), torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(losses("mean"), fullgraph=True, backend=counter, dynamic=True)
    for rows in (7, 33, 20):
        hidden, weight, targets = torch.randn(rows, 6), torch.randn(11, 6, requires_grad=True), torch.arange(rows) % 11
        found, right = compiled(hidden, weight, None, targets), losses("mean")(hidden, weight, None, targets)
        torch.testing.assert_close(torch.autograd.grad(found, weight), torch.autograd.grad(right, weight))
        graphs.add(counter.frame_count)
    assert len(graphs) == 1, "another number of rows was compiled anew"


@pytest.mark.parametrize("autocast", [True, False])
def test_compiled_under_autocast(autocast: bool) -> None:
    torch._dynamo.reset()
    hidden, weight, targets = draw(torch.float32 if autocast else torch.float16)

    def function(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        with torch.autocast(h.device.type, torch.bfloat16, enabled=autocast):
            return losses("mean")(h, w, None, targets) + losses("none")(h, w, None, targets)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    made = []
    for run in (compiled, function):
        out = run(hidden, weight)
        made.append([out, *torch.autograd.grad(out, (hidden, weight))])
    for mine, theirs in zip(*made, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_half_holds_the_mean_of_gradients_whose_sum_it_cannot(compiled: bool) -> None:
    torch._dynamo.reset()
    hidden, weight = torch.full((2000, 2), 100.0).half(), torch.zeros(5, 2).half().requires_grad_()
    targets = torch.zeros(2000, dtype=torch.int64)

    def function(w: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(hidden, w, targets)

    run = torch.compile(function, fullgraph=True, backend="aot_eager") if compiled else function
    (slope,) = torch.autograd.grad(run(weight), weight)
    torch.testing.assert_close(slope[:, 0].tolist(), [-80.0, 20.0, 20.0, 20.0, 20.0], rtol=1e-3, atol=0.0)
