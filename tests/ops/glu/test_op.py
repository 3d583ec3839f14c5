"""The public functions: what autograd, the compiler and fake tensors know of them, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aitrain.errors import ShapeError
from aitrain.ops.glu import reference
from aitrain.ops.glu.op import geglu, swiglu
from ops.passes import draw, run


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["reference", "triton"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("AITRAIN_OPS", request.param)
    return str(request.param)


def test_which_activation_is_which(mode: str) -> None:
    gate, up = draw(4, 24, scale=2.0), draw(4, 24)
    for found, activation in (
        (swiglu(gate, up), "silu"),
        (geglu(gate, up), "gelu_tanh"),
        (geglu(gate, up, approximate="none"), "gelu"),
    ):
        torch.testing.assert_close(found, reference.glu(gate, up, activation), rtol=1e-5, atol=1e-6)
    # tanh and erf are 4e-4 apart at most: near enough to hide a mistake from a loose tolerance
    assert not torch.allclose(geglu(gate, up), geglu(gate, up, approximate="none"), rtol=1e-5, atol=1e-6)


def test_second_backward_pass_gives_the_same(mode: str) -> None:
    gate, up = draw(4, 24).requires_grad_(), draw(4, 24).requires_grad_()
    loss = swiglu(gate, up).square().sum()
    first = torch.autograd.grad(loss, [gate, up], retain_graph=True)
    second = torch.autograd.grad(loss, [gate, up])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_gradient_that_others_share_stays_whole(mode: str) -> None:
    gate, up, grad = draw(4, 24).requires_grad_(), draw(4, 24).requires_grad_(), draw(4, 24)
    (found,) = torch.autograd.grad(swiglu(gate * 1.0, up) + gate, gate, grad)
    (alone,) = torch.autograd.grad(swiglu(gate, up), gate, grad)
    torch.testing.assert_close(found, alone + grad)


def test_only_the_inputs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("AITRAIN_OPS", "triton")
    gate, up = draw(4, 24).requires_grad_(), draw(4, 24).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        swiglu(gate, up)
    assert sorted(kept) == sorted([gate.data_ptr(), up.data_ptr()])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_registered_op(mode: str, packed: bool, activation: str) -> None:
    gate, up = draw(2, 3, 8).requires_grad_(), None if packed else draw(2, 3, 8).requires_grad_()
    torch.library.opcheck(torch.ops.aitrain.glu, (gate, up, activation))
    grad = draw(2, 3, 4 if packed else 8)
    other = None if up is None else up.detach()
    torch.library.opcheck(torch.ops.aitrain.glu_backward, (grad, gate.detach(), other, activation))


def test_compiled_whole(mode: str) -> None:
    def block(gate: torch.Tensor, up: torch.Tensor, both: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return geglu(gate * 2.0, up), swiglu(both * 1.5)

    inputs = {"gate": draw(3, 8), "up": draw(3, 8), "both": draw(3, 16)}
    inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    upstream = [draw(3, 8), draw(3, 8)]
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for found, right in zip(run(compiled, inputs, upstream), run(block, inputs, upstream), strict=True):
        torch.testing.assert_close(found, right)


def test_fake_tensors_have_the_shape_and_the_type() -> None:
    with FakeTensorMode():
        gate = torch.empty(2, 3, 8, dtype=torch.bfloat16, requires_grad=True)
        out, half = swiglu(gate, torch.empty_like(gate)), swiglu(gate)
        (grad,) = torch.autograd.grad([out, half], [gate], [torch.empty_like(out), torch.empty_like(half)])
    assert out.shape == grad.shape == (2, 3, 8) and half.shape == (2, 3, 4)
    assert out.dtype == half.dtype == grad.dtype == torch.bfloat16


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="must be even"):
        swiglu(draw(2, 7))
    with pytest.raises(ShapeError, match="must have the same shape and dtype"):
        swiglu(draw(2, 8), draw(1, 8))
    with pytest.raises(ShapeError, match="must have the same shape and dtype"):
        geglu(draw(2, 8), draw(2, 8, dtype=torch.float16))
    with pytest.raises(ShapeError, match="'tanh' or 'none'"):
        geglu(draw(2, 8), draw(2, 8), approximate="erf")  # type: ignore[arg-type]
