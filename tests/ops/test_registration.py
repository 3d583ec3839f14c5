"""A registered op: autograd, the compiler and fake tensors understand it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aitrain.ops.registration import register


def run(x: torch.Tensor, factor: float) -> torch.Tensor:
    assert type(x) is torch.Tensor, "the compiler looked inside"
    return x * factor


def fake(x: torch.Tensor, factor: float) -> torch.Tensor:
    return torch.empty_like(x)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.factor = inputs[1]


def backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:
    return upstream * ctx.factor, None


SCALED = register("testing_scaled(Tensor x, float factor) -> Tensor", run, fake, backward, setup_context)
CONSTANT = register("testing_constant(Tensor x, float factor) -> Tensor", run, fake)


def test_it_is_an_op_of_the_project() -> None:
    assert SCALED is torch.ops.aitrain.testing_scaled.default
    assert torch.Tag.pt2_compliant_tag in SCALED.tags
    torch.library.opcheck(SCALED, (torch.randn(3, requires_grad=True), 2.0))


def test_gradients_flow_in_eager_and_in_compiled_code() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return SCALED(x.sin(), 3.0).square().sum()

    x = torch.randn(4, requires_grad=True)
    right = torch.autograd.grad((9 * x.sin().square()).sum(), x)[0]
    for way in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        torch.testing.assert_close(torch.autograd.grad(way(x), x)[0], right)


def test_fake_tensors_have_its_shape() -> None:
    with FakeTensorMode() as mode:
        out = SCALED(torch.empty(5, 2, dtype=torch.bfloat16), 2.0)
    assert out.shape == (5, 2) and out.dtype == torch.bfloat16 and out.fake_mode is mode


def test_without_a_backward_it_has_no_gradient() -> None:
    out = CONSTANT(torch.ones(2, requires_grad=True), 2.0)
    assert out.tolist() == [2.0, 2.0]
    with pytest.raises(RuntimeError, match="testing_constant has no backward pass"):
        out.sum().backward()
