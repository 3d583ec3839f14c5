"""A gated MLP with adapters against the same in separate layers: values, gradients, what is kept, the compiler."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aitrain.errors import ShapeError
from aitrain.ops.glu import reference
from aitrain.ops.lora import gated as subject
from aitrain.ops.lora.gated import gated_lora_linear, lora_mlp
from aitrain.ops.lora.projection import Projection, laid_out
from ops.lora.projections import exactly, quantised, trained_in, unfused
from ops.tolerance import assert_close_as_torch

WIDTH, INNER = 8, 12


@pytest.fixture(params=["reference", "triton"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("AITRAIN_OPS", request.param)
    return str(request.param)


def layers(dtype: torch.dtype, kind: str = "dense") -> list[Projection]:
    """Gate, up and down."""
    torch.manual_seed(0)

    def drawn(outputs: int, inputs: int, rank: int, scaling: float) -> Projection:
        weight = quantised(outputs, inputs) if kind == "4 bits" else torch.randn(outputs, inputs).to(dtype)
        a, b = (torch.randn(shape).to(dtype).requires_grad_() for shape in ((rank, inputs), (outputs, rank)))
        return Projection(weight, torch.randn(outputs).to(dtype) if kind == "bias" else None, a, b, scaling)

    gate, up, down = drawn(INNER, WIDTH, 2, 0.5), drawn(INNER, WIDTH, 3, 0.3), drawn(WIDTH, INNER, 2, 0.7)
    return [gate, replace(up, a=None, b=None) if kind == "one without" else up, down]


def separately(x, gate, up, down, activation):
    left, right = unfused(x, [gate, up])
    wide = torch.promote_types(x.dtype, torch.float32)
    inner = (reference.activated(left.to(wide), activation) * right.to(wide)).to(x.dtype)
    return unfused(inner, [down])[0]


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["dense", "bias", "4 bits", "one without"])
def test_values_and_gradients(mode, kind, dtype, activation):
    given = layers(dtype, kind)
    x, precise = torch.randn(2, 5, WIDTH).to(dtype).requires_grad_(), [exactly(each) for each in given]
    wide = x.detach().double().requires_grad_()
    ours = lora_mlp(x, *given, activation)
    plain, exact = separately(x, *given, activation), separately(wide, *precise, activation)
    assert_close_as_torch(ours.detach(), plain.detach(), exact.detach())
    upstream = torch.randn(ours.shape).to(dtype)
    leaves = [x, *trained_in(given)]
    found = torch.autograd.grad(ours, leaves, upstream, retain_graph=True)
    again = torch.autograd.grad(ours, leaves, upstream)
    torchs = torch.autograd.grad(plain, leaves, upstream)
    right = torch.autograd.grad(exact, [wide, *trained_in(precise)], upstream.double())
    for mine, second, theirs, true in zip(found, again, torchs, right, strict=True):
        assert torch.equal(mine, second)
        assert_close_as_torch(mine, theirs, true, factor=3.0)


@pytest.mark.parametrize("rows", [(0,), (1,), (3, 0)])
def test_few_rows(mode, rows):
    given = layers(torch.float32)
    x = torch.randn(*rows, WIDTH, requires_grad=True)
    out = lora_mlp(x, *given)
    torch.testing.assert_close(out, separately(x, *given, "silu"))
    assert torch.autograd.grad(out.sum(), [x, *trained_in(given)])[0].shape == x.shape


def test_gate_and_up_in_one_layer(mode):
    gate, up, down = layers(torch.float32)
    x = torch.randn(5, WIDTH, requires_grad=True)
    both = Projection(torch.cat([gate.weight, up.weight]), None, gate.a, torch.randn(2 * INNER, 2), 0.5)

    def apart(x, both, down):
        packed = unfused(x, [both])[0]
        return unfused(torch.nn.functional.silu(packed[:, :INNER]) * packed[:, INNER:], [down])[0]

    outputs = [lora_mlp(x, both, None, down), apart(x, both, down)]
    outputs.append(apart(x.double(), *(exactly(each, keep=True) for each in (both, down))))
    assert_close_as_torch(*outputs)
    leaves = [x, gate.a, down.a, down.b]
    for found in zip(*(torch.autograd.grad(out.square().sum(), leaves) for out in outputs), strict=True):
        assert_close_as_torch(*found, factor=3.0)


def test_gradcheck():
    gate, up, down = layers(torch.float64)
    x = torch.randn(3, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, a, b: lora_mlp(x, gate, up, replace(down, a=a, b=b), "gelu"), (x, down.a, down.b)
    )


def test_x_gate_and_up_are_all_that_is_kept():
    given = layers(torch.float32)
    x, kept = torch.randn(10, WIDTH, requires_grad=True), {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        lora_mlp(x, *given)
    own = {part.data_ptr() for part in laid_out(given)[0] if part is not None}
    activations = [t.shape for pointer, t in kept.items() if pointer not in own]
    assert sorted(activations) == sorted([x.shape, (10, INNER), (10, INNER)])


def test_half_of_the_gradients():
    given = layers(torch.float32)
    x = torch.randn(3, WIDTH)
    frozen = [replace(each, a=each.a.detach(), b=each.b.detach()) for each in given]
    only_down = [frozen[0], frozen[1], given[2]]
    found = torch.autograd.grad(lora_mlp(x, *only_down).sum(), [given[2].a, given[2].b])
    torch.testing.assert_close(
        found, torch.autograd.grad(separately(x, *only_down, "silu").sum(), [given[2].a, given[2].b])
    )
    x.requires_grad_()
    (found,) = torch.autograd.grad(lora_mlp(x, *frozen).sum(), [x])
    torch.testing.assert_close(found, torch.autograd.grad(separately(x, *frozen, "silu").sum(), [x])[0])


def test_under_autocast():
    given = layers(torch.float32)
    x = torch.randn(4, WIDTH, requires_grad=True)
    with torch.autocast(x.device.type, torch.bfloat16):
        out = lora_mlp(x, *given)
    assert out.dtype == torch.bfloat16
    exact = separately(x, *given, "silu")
    assert_close_as_torch(out.detach(), out.detach(), exact.detach(), floor=2e-2)
    for mine, true in zip(
        torch.autograd.grad(out.float().sum(), [x, *trained_in(given)]),
        torch.autograd.grad(exact.sum(), [x, *trained_in(given)]),
        strict=True,
    ):
        assert mine.dtype == torch.float32
        assert_close_as_torch(mine, true, true, floor=4e-2)  # three layers of roundings to bf16


@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(mode, packed):
    down = layers(torch.float32)[2]
    gate = torch.randn(4, 2 * INNER if packed else INNER, requires_grad=True)
    up = None if packed else torch.randn(4, INNER, requires_grad=True)
    parts, numbers = laid_out([down])
    present = [part for part in parts if part is not None]
    torch.library.opcheck(subject._forward_op, (gate, up, present, numbers, 0.7, "silu", torch.float32))
    plain, other = [part.detach() for part in present], None if up is None else up.detach()
    rest = (plain, numbers, 0.7, "silu", torch.float32)
    for wanted in ([True, True, True], [False, True, False]):
        torch.library.opcheck(subject._backward_op, (torch.randn(4, WIDTH), gate.detach(), other, *rest, wanted))


def test_compiled_whole(mode):
    given = layers(torch.float32, "4 bits")
    x = torch.randn(2, 3, WIDTH, requires_grad=True)
    leaves = [x, *trained_in(given)]

    def function(x):
        return lora_mlp(x * 2, *given).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), function(x))
    torch.testing.assert_close(torch.autograd.grad(compiled(x), leaves), torch.autograd.grad(function(x), leaves))


def test_fake_tensors_have_the_shape_and_the_type():
    given = layers(torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 3, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        out = lora_mlp(x, *given)
        (grad,) = torch.autograd.grad(out.sum(), [x])
    assert out.shape == grad.shape == (2, 3, WIDTH) and out.dtype == grad.dtype == torch.bfloat16


def test_what_does_not_fit_is_refused():
    gate, up, down = layers(torch.float32)
    x = torch.randn(3, WIDTH)
    with pytest.raises(ShapeError, match="silu, gelu_tanh, gelu"):
        lora_mlp(x, gate, up, down, "relu")
    with pytest.raises(ShapeError, match="must have the same shape and dtype"):
        gated_lora_linear(x, x.half(), down)
    with pytest.raises(ShapeError, match="must be even"):
        gated_lora_linear(torch.randn(3, 7), None, down)
    with pytest.raises(ShapeError, match="as wide as x"):
        lora_mlp(x, gate, up, gate)
