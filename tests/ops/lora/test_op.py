"""lora_linear against plain autograd: values, gradients, types, what is kept, what the compiler sees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aitrain.errors import ShapeError
from aitrain.ops.lora import op as subject
from aitrain.ops.lora.op import lora_linear, lora_linears
from aitrain.ops.lora.projection import Projection, laid_out
from aitrain.ops.lora.reference import lora_linear as reference
from ops.lora.projections import exactly, mixed, trained_in, unfused
from ops.tolerance import assert_close_as_torch

SHAPES = [((2, 5), 7, 9, 3), ((1,), 1, 1, 1), ((0,), 4, 3, 2), ((3, 2, 4), 8, 16, 4)]


def inputs(lead: tuple[int, ...], k: int, n: int, r: int, dtype: torch.dtype, bias: bool) -> list[torch.Tensor | None]:
    torch.manual_seed(0)
    made = [torch.randn(*lead, k), torch.randn(n, k), torch.randn(n) if bias else None, torch.randn(r, k)]
    made.append(torch.randn(n, r))
    return [x if x is None else x.to(dtype).requires_grad_(at in (0, 3, 4)) for at, x in enumerate(made)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, dtype, bias):
    given = inputs(*shape, dtype, bias)
    exact_in = [x if x is None else x.detach().double().requires_grad_(x.requires_grad) for x in given]
    ours, plain, exact = lora_linear(*given, 0.7), reference(*given, 0.7), reference(*exact_in, 0.7)
    assert_close_as_torch(ours, plain, exact)
    upstream = torch.randn(ours.shape, dtype=torch.float64)
    trained = [given[at] for at in (0, 3, 4)]
    found = torch.autograd.grad((ours * upstream.to(dtype)).sum(), trained, retain_graph=True)
    again = torch.autograd.grad((ours * upstream.to(dtype)).sum(), trained)
    torchs = torch.autograd.grad((plain * upstream.to(dtype)).sum(), trained)
    wanted = torch.autograd.grad((exact * upstream.to(dtype).double()).sum(), [exact_in[at] for at in (0, 3, 4)])
    for mine, second, theirs, true in zip(found, again, torchs, wanted, strict=True):
        assert torch.equal(mine, second)
        assert_close_as_torch(mine, theirs, true, factor=3.0)


def test_gradcheck():
    x, weight, bias, a, b = inputs((3,), 4, 5, 2, torch.float64, True)
    assert torch.autograd.gradcheck(lambda x, a, b: lora_linear(x, weight, bias, a, b, 0.3), (x, a, b))


def test_strided_and_expanded_inputs_and_upstream():
    x, weight, _, a, b = inputs((6, 4), 8, 5, 2, torch.float64, False)
    for view in (x.transpose(0, 1), x[::2], x[:1].expand(3, 4, 8)):
        torch.testing.assert_close(lora_linear(view, weight, None, a, b, 2.0), reference(view, weight, None, a, b, 2.0))
    ours = torch.autograd.grad(lora_linear(x, weight, None, a, b, 2.0).sum(), (x, a, b))
    plain = torch.autograd.grad(reference(x, weight, None, a, b, 2.0).sum(), (x, a, b))
    torch.testing.assert_close(ours, plain)


def test_float32_adapter_beside_a_bf16_layer_and_under_autocast():
    x, weight, _, a, b = inputs((16,), 32, 24, 4, torch.float32, False)
    exact = torch.autograd.grad(
        reference(*(t if t is None else t.double() for t in (x, weight, None, a, b)), 1.5).sum(), (x, a, b)
    )
    narrow = lora_linear(x.bfloat16(), weight.bfloat16(), None, a, b, 1.5)
    with torch.autocast(x.device.type, torch.bfloat16):
        cast, plain = lora_linear(x, weight, None, a, b, 1.5), reference(x, weight, None, a, b, 1.5)
    assert narrow.dtype == cast.dtype == torch.bfloat16
    torch.testing.assert_close(narrow, cast)
    torchs = torch.autograd.grad(plain.sum(), (x, a, b))
    for mine, theirs, true in zip(torch.autograd.grad(cast.sum(), (x, a, b)), torchs, exact, strict=True):
        assert mine.dtype == torch.float32
        assert_close_as_torch(mine, theirs, true, factor=3.0, floor=8e-3)


def test_only_the_input_is_kept():
    x, weight, _, a, b = inputs((10,), 8, 6, 2, torch.float32, False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        lora_linear(x, weight, None, a, b, 1.0)
    assert set(kept) == {t.data_ptr() for t in (x, weight, a, b)} and len(kept) == 4


def test_what_is_not_wanted_is_not_computed():
    x, weight, _, a, b = inputs((3,), 4, 5, 2, torch.float32, False)
    assert torch.autograd.grad(lora_linear(x.detach(), weight, None, a, b, 1.0).sum(), (a, b))[0].shape == a.shape
    (grad,) = torch.autograd.grad(lora_linear(x, weight, None, a.detach(), b.detach(), 1.0).sum(), x)
    assert grad.shape == x.shape


def test_the_compiler_sees_one_op():
    given = inputs((6,), 8, 5, 2, torch.float32, True)
    compiled = torch.compile(lora_linear, fullgraph=True, backend="aot_eager")
    trained = [given[at] for at in (0, 3, 4)]
    torch.testing.assert_close(compiled(*given, 0.5), lora_linear(*given, 0.5))
    ours = torch.autograd.grad((compiled(*given, 0.5) ** 2).sum(), trained)
    torch.testing.assert_close(ours, torch.autograd.grad((lora_linear(*given, 0.5) ** 2).sum(), trained))


@pytest.mark.parametrize("several", [False, True])
def test_opcheck(several):
    x = torch.randn(6, 8, requires_grad=True)
    given = mixed(8, torch.float32) if several else mixed(8, torch.float32)[:1]
    parts, numbers = laid_out(given)
    present = [part for part in parts if part is not None]
    scalings = [each.scaling for each in given]
    torch.library.opcheck(subject._forward_op, (x, present, numbers, scalings, torch.float32))
    upstream = [torch.randn(6, each.weight.shape[0]) for each in given]
    wanted = [True, *(part is not None and part.requires_grad for each in given for part in (each.a, each.b))]
    plain = [part.detach() for part in present]
    torch.library.opcheck(subject._backward_op, (upstream, x.detach(), plain, numbers, scalings, torch.float32, wanted))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.__setitem__(3, torch.randn(2, 9)), "must be"),
        (lambda g: g.__setitem__(4, torch.randn(5, 3)), "must be"),
        (lambda g: g[1].requires_grad_(), "frozen"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    given = inputs((6,), 8, 5, 2, torch.float32, False)
    change(given)
    with pytest.raises(ShapeError, match=words):
        lora_linear(*given, 1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lead", [(2, 5), (1,), (0,)])
def test_several_of_one_input(lead, dtype):
    torch.manual_seed(0)
    x, given = torch.randn(*lead, 8).to(dtype).requires_grad_(), mixed(8, dtype)
    wide, precise = x.detach().double().requires_grad_(), [exactly(each) for each in given]
    ours, plain, exact = lora_linears(x, given), unfused(x, given), unfused(wide, precise)
    upstream = [torch.randn(out.shape).to(dtype) for out in ours]
    leaves = [x, *trained_in(given)]
    found = torch.autograd.grad(ours, leaves, upstream, retain_graph=True)
    again = torch.autograd.grad(ours, leaves, upstream)
    torchs = torch.autograd.grad(plain, leaves, upstream)
    right = torch.autograd.grad(exact, [wide, *trained_in(precise)], [grad.double() for grad in upstream])
    for mine, theirs, true in zip(ours, plain, exact, strict=True):
        assert_close_as_torch(mine.detach(), theirs.detach(), true.detach())
    for mine, second, theirs, true in zip(found, again, torchs, right, strict=True):
        assert torch.equal(mine, second)
        assert_close_as_torch(mine, theirs, true, factor=3.0)


def test_gradcheck_of_several():
    torch.manual_seed(0)
    x, given = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), mixed(4, torch.float64)

    def function(x, *trained):
        left = iter(trained)
        swapped = [
            each if each.a is None or not each.a.requires_grad else replace(each, a=next(left), b=next(left))
            for each in given
        ]
        return lora_linears(x, swapped)

    assert torch.autograd.gradcheck(function, (x, *trained_in(given)))


def test_an_output_that_nobody_uses_costs_nothing():
    x, given = torch.randn(3, 8, requires_grad=True), mixed(8, torch.float32)
    used = torch.autograd.grad(lora_linears(x, given)[0].sum(), [x, given[0].a, given[0].b])
    alone = torch.autograd.grad(lora_linears(x, given[:1])[0].sum(), [x, given[0].a, given[0].b])
    torch.testing.assert_close(used, alone)
    (second,) = torch.autograd.grad(lora_linears(x, given)[0].sum(), [given[1].b])
    assert torch.equal(second, torch.zeros_like(second))


def test_the_input_is_kept_once_and_nothing_else_but_the_layers():
    x, given = torch.randn(10, 8, requires_grad=True), mixed(8, torch.float32)
    parts = [part for part in laid_out(given)[0] if part is not None]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        lora_linears(x, given)
    assert kept.count(x.data_ptr()) == 1
    assert set(kept) <= {x.data_ptr(), *(part.data_ptr() for part in parts)}


@pytest.mark.parametrize("cast", [False, True])
def test_types_of_adapters_differ_from_the_layers(cast):
    torch.manual_seed(0)
    x = torch.randn(16, 32, requires_grad=True)
    given = [replace(each, weight=half(each.weight), bias=half(each.bias)) for each in mixed(32, torch.float32)[:3]]
    leaves = trained_in(given)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=cast):
        ours = lora_linears(x if cast else x.bfloat16(), given)
    assert {out.dtype for out in ours} == {torch.bfloat16}
    exact = unfused(x.double(), [exactly(each, keep=True) for each in given])
    with torch.autocast(x.device.type, torch.bfloat16):  # torch has no product of bf16 and fp32 without it
        usual = unfused(x, given)
    for mine, theirs, true in zip(ours, usual, exact, strict=True):
        assert_close_as_torch(mine, theirs.to(mine.dtype), true)
    found = torch.autograd.grad([out.float().sum() for out in ours], [x, *leaves])
    torchs = torch.autograd.grad([out.float().sum() for out in usual], [x, *leaves])
    right = torch.autograd.grad([out.sum() for out in exact], [x, *leaves])
    for mine, theirs, true in zip(found, torchs, right, strict=True):
        assert mine.dtype == torch.float32
        assert_close_as_torch(mine, theirs, true, factor=3.0)


def half(part):
    return part.bfloat16() if isinstance(part, torch.Tensor) else part


def test_the_compiler_sees_one_op_for_all():
    x, given = torch.randn(2, 3, 8, requires_grad=True), mixed(8, torch.float32)
    leaves = [x, *trained_in(given)]

    def function(x):
        return sum(out.square().sum() for out in lora_linears(x * 2, given))

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), function(x))
    torch.testing.assert_close(torch.autograd.grad(compiled(x), leaves), torch.autograd.grad(function(x), leaves))


def test_fake_tensors_have_the_shape_and_the_type():
    given = mixed(8, torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 3, 8, dtype=torch.bfloat16, requires_grad=True)
        outs = lora_linears(x, given)
        (grad,) = torch.autograd.grad([out.sum() for out in outs], [x])
    assert [out.shape for out in outs] == [(2, 3, each.weight.shape[0]) for each in given]
    assert {out.dtype for out in outs} == {torch.bfloat16} and grad.shape == x.shape


def test_nothing_to_project_with():
    with pytest.raises(ShapeError, match="at least one"):
        lora_linears(torch.randn(2, 3), [])
    with pytest.raises(ShapeError, match="as wide as x"):
        lora_linears(torch.randn(2, 3), [Projection(torch.randn(4, 5))])
