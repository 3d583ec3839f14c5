"""The definition is Hugging Face's, and its closed form is the definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from aitrain.ops.rms_norm import reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_bit_is_hugging_faces(dtype: torch.dtype) -> None:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    torch.manual_seed(0)
    x, weight = torch.randn(5, 33, dtype=dtype), torch.randn(33, dtype=dtype)
    for norm, offset, first in ((Qwen3RMSNorm(33, eps=1e-6), 0.0, True), (Gemma3RMSNorm(33, eps=1e-6), 1.0, False)):
        norm.weight.data = weight
        assert torch.equal(reference.rms_norm(x, weight, 1e-6, offset, first), norm(x))


def test_definition_is_torchs_in_float64() -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(4, 3, 17, dtype=torch.float64), torch.randn(17, dtype=torch.float64)
    for first in (True, False):
        expected = F.rms_norm(x, (17,), weight + 0.5, 1e-3)
        torch.testing.assert_close(reference.rms_norm(x, weight, 1e-3, 0.5, first), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float64, torch.float32, torch.bfloat16, None])
def test_fewer_passes_give_the_same(first: bool, dtype: torch.dtype, weight_dtype: torch.dtype | None) -> None:
    torch.manual_seed(2)
    x, residual = torch.randn(2, 5, 24).to(dtype), torch.randn(2, 5, 24).to(dtype)
    weight = None if weight_dtype is None else torch.randn(24).to(weight_dtype)
    y, total, rstd = reference.forward(x, weight, residual, 1e-5, 1.0, first)
    expected = reference.rms_norm(x + residual, weight, 1e-5, 1.0, first)
    # bf16: both round the same float32 values, which differ in their last bits, so that one in a hundred rounds apart
    near = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 2**-6}[dtype]
    torch.testing.assert_close(y, expected, rtol=near, atol=near)
    assert torch.equal(total, x + residual)
    full = reference.wide(dtype)
    torch.testing.assert_close(rstd, (total.to(full).square().mean(-1) + 1e-5).rsqrt().flatten())


def test_closed_gradient_is_autograds() -> None:
    torch.manual_seed(3)
    x, weight, grad, past = (torch.randn(*shape, dtype=torch.float64) for shape in ((6, 9), (9,), (6, 9), (6, 9)))
    x.requires_grad_(), weight.requires_grad_()
    y = reference.rms_norm(x, weight, 1e-2, 1.0, False)
    expected = torch.autograd.grad([y, x * 1.0], [x, weight], [grad, past])
    with torch.no_grad():
        rstd = (x.square().mean(-1) + 1e-2).rsqrt()
        found = reference.backward(grad, past, x, weight, rstd, 1.0, True)
        alone = reference.backward(grad, None, x, weight, rstd, 1.0, False)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(alone[0] + past, expected[0], rtol=1e-12, atol=1e-12)
    assert alone[1] is None
