"""Autograd and the registered ops: several passes, shared gradients, frozen inputs, compiled code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from aitrain.ops.linear_loss import autograd as subject
from aitrain.ops.linear_loss.op import linear_cross_entropy, linear_logprobs

MODES = pytest.mark.parametrize("mode", ["reference", "triton"])


@pytest.fixture(autouse=True)
def _mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "mode" in request.fixturenames:
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
        hidden = torch.empty(2, 5, 6, dtype=torch.bfloat16)
        weight, targets = torch.empty(11, 6, dtype=torch.bfloat16), torch.empty(2, 5, dtype=torch.int64)
        loss = linear_cross_entropy(hidden, weight, targets, reduction="none")
    assert loss.fake_mode is mode and loss.shape == (2, 5) and loss.dtype is torch.float32


@MODES
def test_opcheck(mode: str) -> None:
    hidden, weight, targets = draw()
    bias = torch.randn(11, requires_grad=True)
    labels = torch.where(targets < 0, -1, targets)
    tensors = (hidden, weight, bias, labels)
    flat = [[0.7, 5.0, 0.1, 0.01], 1, None, torch.float32]
    torch.library.opcheck(subject._loss_op, (*tensors, torch.tensor(0.5), *flat, [True, True, True]))
    torch.library.opcheck(subject._statistics_op, (*tensors, *flat, True, True))
    fixed = [x.detach() for x in tensors]
    saved = [x.detach() for x in subject._statistics_op(*tensors, *flat, True, True)]
    upstream = [torch.randn(20) for _ in saved]
    torch.library.opcheck(
        subject._statistics_backward_op, (*fixed, *saved, *upstream, *flat, True, True, [True, True, True])
    )
