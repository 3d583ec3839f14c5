"""The public function: what autograd, the compiler and fake tensors know of it, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aitrain.errors import ShapeError
from aitrain.ops.rms_norm import reference
from aitrain.ops.rms_norm.op import rms_norm
from ops.passes import assert_passes, draw, run

MODES = ["reference", "triton"]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("AITRAIN_OPS", request.param)
    return str(request.param)


@pytest.mark.parametrize("cast", ["llama", "gemma"])
def test_gradients_on_the_cpu(cast: str) -> None:
    def exact(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.rms_norm(x + residual, weight, 0.1, 0.5, cast == "llama"), x + residual

    for dtype in (torch.float32, torch.bfloat16):
        inputs = {"x": draw(3, 5, 24, dtype=dtype), "weight": draw(24), "residual": draw(3, 5, 24, dtype=dtype)}
        upstream = [draw(3, 5, 24, dtype=dtype, scale=2.0), draw(3, 5, 24, dtype=dtype)]
        assert_passes(
            lambda x, weight, residual: rms_norm(x, weight, 0.1, residual, 0.5, cast), exact, inputs, upstream
        )


def test_gradcheck() -> None:
    x, weight, residual = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 6), (6,), (4, 6))
    )
    torch.autograd.gradcheck(lambda x, w, r: rms_norm(x, w, 1e-2, r, 1.0, "gemma"), (x, weight, residual))
    torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-2), (x, weight))
    torch.autograd.gradcheck(lambda x: rms_norm(x, None, 1e-2), (x,))


def test_second_backward_pass_gives_the_same(mode: str) -> None:
    x, weight, residual = (draw(*shape).requires_grad_() for shape in ((4, 24), (24,), (4, 24)))
    y, total = rms_norm(x, weight, 1e-5, residual)
    loss = (y * y).sum() + (total * y).sum()
    first = torch.autograd.grad(loss, [x, weight, residual], retain_graph=True)
    second = torch.autograd.grad(loss, [x, weight, residual])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_gradient_that_others_share_stays_whole(mode: str) -> None:
    x, weight = draw(4, 24).requires_grad_(), draw(24).requires_grad_()
    grad = draw(4, 24)
    hidden = x * 1.0
    y = rms_norm(hidden, weight, 1e-5)
    # the addition hands one and the same gradient tensor to the norm and to the residual branch
    (found,) = torch.autograd.grad(y + hidden, x, grad)
    (alone,) = torch.autograd.grad(rms_norm(x, weight, 1e-5), x, grad)
    torch.testing.assert_close(found, alone + grad)


@pytest.mark.parametrize("used", ["y", "sum", "both"])
def test_one_output_alone(mode: str, used: str) -> None:
    x, weight, residual = (draw(*shape).requires_grad_() for shape in ((4, 24), (24,), (4, 24)))
    expected = reference.rms_norm(x + residual, weight, 1e-5), x + residual
    found = rms_norm(x, weight, 1e-5, residual)
    chosen = {"y": [0], "sum": [1], "both": [0, 1]}[used]
    grads = [draw(4, 24) for _ in chosen]
    for mine, right in zip(
        torch.autograd.grad([found[i] for i in chosen], [x, weight, residual], grads, allow_unused=True),
        torch.autograd.grad([expected[i] for i in chosen], [x, weight, residual], grads, allow_unused=True),
        strict=True,
    ):
        assert right is None and mine is None or torch.allclose(mine, right, rtol=1e-4, atol=1e-5)


def test_frozen_weight_costs_no_gradient(mode: str) -> None:
    x, weight = draw(4, 24).requires_grad_(), draw(24)
    grad = draw(4, 24)
    (found,) = torch.autograd.grad(rms_norm(x, weight, 1e-5), x, grad)
    (right,) = torch.autograd.grad(reference.rms_norm(x, weight, 1e-5), x, grad)
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("weight", [torch.float16, torch.float32, None])
def test_registered_op(mode: str, residual: bool, weight: torch.dtype | None) -> None:
    x = draw(3, 8, dtype=torch.float16).requires_grad_()
    scale = None if weight is None else draw(8, dtype=weight).requires_grad_()
    past = draw(3, 8, dtype=torch.float16).requires_grad_() if residual else None
    near = {"rtol": 2e-3, "atol": 2e-3}
    torch.library.opcheck(torch.ops.aitrain.rms_norm, (x, scale, past, 1e-5, 0.0, True), **near)
    total, rstd = draw(3, 8, dtype=torch.float16), torch.rand(3)
    backward = (draw(3, 8, dtype=torch.float16), past, total, scale, rstd, 0.0, weight is not None)
    torch.library.opcheck(
        torch.ops.aitrain.rms_norm_backward,
        tuple(value.detach() if isinstance(value, torch.Tensor) else value for value in backward),
        **near,
    )


def test_compiled_whole(mode: str) -> None:
    def block(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, total = rms_norm(x * 2.0, weight, 1e-5, residual, offset=1.0, cast="gemma")
        return rms_norm(y, weight, 1e-5), total

    inputs = {
        "x": draw(4, 16).requires_grad_(),
        "weight": draw(16).requires_grad_(),
        "residual": draw(4, 16).requires_grad_(),
    }
    upstream = [draw(4, 16), draw(4, 16)]
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for mine, right in zip(run(compiled, inputs, upstream), run(block, inputs, upstream), strict=True):
        torch.testing.assert_close(mine, right)


def test_fake_tensors_have_the_shape_and_the_type() -> None:
    with FakeTensorMode():
        x, weight = torch.empty(2, 3, 8, dtype=torch.bfloat16, requires_grad=True), torch.empty(8, requires_grad=True)
        y, total = rms_norm(x, weight, 1e-5, torch.empty_like(x))
        dx, dweight = torch.autograd.grad([y, total], [x, weight], [torch.empty_like(y), torch.empty_like(y)])
    assert y.shape == total.shape == dx.shape == (2, 3, 8)
    assert y.dtype == total.dtype == dx.dtype == torch.bfloat16
    assert dweight.shape == (8,) and dweight.dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    x = draw(2, 8)
    with pytest.raises(ShapeError, match=r"must be \(8,\)"):
        rms_norm(x, draw(4))
    with pytest.raises(ShapeError, match="must have the same shape and dtype"):
        rms_norm(x, draw(8), residual=draw(2, 4))
    with pytest.raises(ShapeError, match="must have the same shape and dtype"):
        rms_norm(x, draw(8), residual=draw(2, 8, dtype=torch.float16))
    with pytest.raises(ShapeError, match="'llama' or 'gemma'"):
        rms_norm(x, draw(8), cast="olmo")  # type: ignore[arg-type]
