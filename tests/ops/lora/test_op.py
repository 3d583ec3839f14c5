"""lora_linear against plain autograd: values, gradients, types, what is kept, what the compiler sees."""

from __future__ import annotations

import pytest
import torch

from aitrain.errors import ShapeError
from aitrain.ops.lora import op as subject
from aitrain.ops.lora.op import lora_linear
from aitrain.ops.lora.reference import lora_linear as reference
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
    with torch.autocast("cpu", torch.bfloat16):
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
    assert set(kept) == {t.data_ptr() for t in (x, weight, a, b)}


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


@pytest.mark.parametrize("bias", [False, True])
def test_opcheck(bias):
    given = inputs((6,), 8, 5, 2, torch.float32, bias)
    torch.library.opcheck(subject._forward_op, (*given, 0.5, torch.float32))
    plain = [t.detach() for t in (given[0], given[1], given[3], given[4])]
    wanted = [True, False, False, True, True]
    torch.library.opcheck(subject._backward_op, (torch.randn(6, 5), *plain, 0.5, torch.float32, wanted))


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
