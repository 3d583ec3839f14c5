"""The public function on kernels and on plain PyTorch: numbers, autograd, the compiler, fake tensors, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from aitrain.errors import ShapeError
from aitrain.ops.layer_norm.op import layer_norm
from ops.passes import assert_passes, draw, run

EPS = 0.1  # so large that every formula feels it


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["reference", "triton"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("AITRAIN_OPS", request.param)
    return str(request.param)


def torchs(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    total = x if residual is None else x + residual
    y = F.layer_norm(total, x.shape[-1:], weight, bias, EPS)
    return y if residual is None else (y, total)


def ours(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    return layer_norm(x, weight, bias, EPS, residual)


SHAPES = {
    "two numbers": (1, 2),
    "odd": (5, 65),
    "a power of two": (3, 128),
    "four dimensions": (2, 3, 2, 16),
    "more rows than programs, several per program": (301, 48),
    "a row in one program, more rows than programs": (7, 2049),
    "one dimension": (33,),
    "no rows": (0, 8),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_plain(mode: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    # a mean far from 0 shows whether it is taken away before the squares are summed
    x = (draw(*shape) + 4.0).to(dtype)
    inputs = {"x": x, "weight": draw(shape[-1], dtype=dtype), "bias": draw(shape[-1], dtype=dtype)}
    assert_passes(ours, torchs, inputs, [draw(*shape, dtype=dtype, scale=3.0)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(5, 65), (301, 48), (6, 2056)])
def test_sum_first(mode: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    vectors = {name: draw(shape[-1], dtype=dtype) for name in ("weight", "bias")}
    inputs = {"x": draw(*shape, dtype=dtype), **vectors, "residual": draw(*shape, dtype=dtype)}
    assert_passes(ours, torchs, inputs, [draw(*shape, dtype=dtype, scale=2.0), draw(*shape, dtype=dtype)])


@pytest.mark.parametrize("layout", ["columns", "turned", "swapped", "expanded"])
def test_layouts(mode: str, layout: str) -> None:
    inputs = {"x": draw(2, 3, 5, 16, layout=layout), "weight": draw(16), "bias": draw(16)}
    inputs["residual"] = draw(2, 3, 5, 16, layout="columns" if layout == "swapped" else layout)
    assert_passes(ours, torchs, inputs, [draw(2, 3, 5, 16, layout=layout), draw(2, 3, 5, 16, layout=layout)])


@pytest.mark.parametrize("absent", [("weight",), ("bias",), ("weight", "bias")])
def test_without_vectors(mode: str, absent: tuple[str, ...]) -> None:
    inputs = {"x": draw(4, 24), **{name: draw(24) for name in ("weight", "bias") if name not in absent}}
    assert_passes(ours, torchs, inputs, [draw(4, 24)])


def test_vectors_in_float32(mode: str) -> None:
    def mixed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        kind = torch.promote_types(x.dtype, weight.dtype)
        return F.layer_norm(x.to(kind), x.shape[-1:], weight, bias, EPS).to(x.dtype)

    inputs = {"x": draw(4, 24, dtype=torch.float16), "weight": draw(24), "bias": draw(24)}
    assert_passes(ours, mixed, inputs, [draw(4, 24)])


def test_gradcheck() -> None:
    x, weight, bias, residual = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (6, 6, 6, 6))
    torch.autograd.gradcheck(ours, (x, weight, bias, residual))
    torch.autograd.gradcheck(ours, (x, None, bias))


def test_second_backward_pass_gives_the_same(mode: str) -> None:
    x, residual = draw(4, 24).requires_grad_(), draw(4, 24).requires_grad_()
    weight, bias = draw(24).requires_grad_(), draw(24).requires_grad_()
    y, total = ours(x, weight, bias, residual)
    loss = (y * y).sum() + (total * y).sum()
    first = torch.autograd.grad(loss, [x, weight, bias, residual], retain_graph=True)
    second = torch.autograd.grad(loss, [x, weight, bias, residual])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("used", [[0], [1]])
def test_one_output_alone(mode: str, used: list[int]) -> None:
    tensors = [draw(4, 24), draw(24), draw(24), draw(4, 24)]
    asked = [tensor.requires_grad_() for tensor in tensors]
    for found, right in zip(
        *(
            torch.autograd.grad([f(*asked)[i] for i in used], asked, [torch.ones(4, 24)], allow_unused=True)
            for f in (ours, torchs)
        ),
        strict=True,
    ):
        assert found is None if right is None else torch.allclose(found, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_frozen_vector(mode: str, frozen: str) -> None:
    inputs = {"x": draw(4, 24).requires_grad_(), "weight": draw(24), "bias": draw(24)}
    for name in {"weight", "bias"} - {frozen}:
        inputs[name].requires_grad_()
    grad = [draw(4, 24)]
    for found, right in zip(run(ours, inputs, grad), run(torchs, inputs, grad), strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("weight", [torch.float16, torch.float32, None])
def test_registered_op(mode: str, residual: bool, weight: torch.dtype | None) -> None:
    x = draw(3, 8, dtype=torch.float16).requires_grad_()
    scale = None if weight is None else draw(8, dtype=weight).requires_grad_()
    bias = draw(8, dtype=torch.float16).requires_grad_()
    past = draw(3, 8, dtype=torch.float16).requires_grad_() if residual else None
    near = {"rtol": 2e-3, "atol": 2e-3}
    torch.library.opcheck(torch.ops.aitrain.layer_norm, (x, scale, bias, past, EPS), **near)
    total, mean, rstd = draw(3, 8, dtype=torch.float16), torch.rand(3), torch.rand(3)
    backward = (draw(3, 8, dtype=torch.float16), past, total, scale, mean, rstd, weight, torch.float16)
    torch.library.opcheck(
        torch.ops.aitrain.layer_norm_backward,
        tuple(value.detach() if isinstance(value, torch.Tensor) else value for value in backward),
        **near,
    )


def test_compiled_whole(mode: str) -> None:
    def block(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y, total = layer_norm(x * 2.0, weight, bias, EPS, residual)
        return layer_norm(y, None, bias, EPS), total

    inputs = {"x": draw(4, 16), "weight": draw(16), "bias": draw(16), "residual": draw(4, 16)}
    inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    upstream = [draw(4, 16), draw(4, 16)]
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for found, right in zip(run(compiled, inputs, upstream), run(block, inputs, upstream), strict=True):
        torch.testing.assert_close(found, right)


def test_fake_tensors_have_the_shape_and_the_type() -> None:
    with FakeTensorMode():
        x, weight = torch.empty(2, 3, 8, dtype=torch.bfloat16, requires_grad=True), torch.empty(8, requires_grad=True)
        y, total = layer_norm(x, weight, None, 1e-5, torch.empty_like(x))
        dx, dweight = torch.autograd.grad([y, total], [x, weight], [torch.empty_like(y), torch.empty_like(y)])
    assert y.shape == total.shape == dx.shape == (2, 3, 8)
    assert y.dtype == total.dtype == dx.dtype == torch.bfloat16
    assert dweight.shape == (8,) and dweight.dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    x = draw(2, 8)
    with pytest.raises(ShapeError, match=r"weight \(4,\).* must be \(8,\)"):
        layer_norm(x, draw(4))
    with pytest.raises(ShapeError, match=r"bias \(4,\).* must be \(8,\)"):
        layer_norm(x, None, draw(4))
    with pytest.raises(ShapeError, match="must have the same shape and dtype"):
        layer_norm(x, residual=draw(2, 8, dtype=torch.float16))
