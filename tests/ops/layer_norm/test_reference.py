"""The definition in mixed types, and the closed form of both passes."""

from __future__ import annotations

import pytest
import torch

from aitrain.ops.layer_norm import reference
from ops.tolerance import FLOOR


def written_out(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """LayerNorm from its formula, in float64."""
    full = x.double()
    centred = full - full.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight.double()
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vectors", [torch.float64, torch.float32, torch.bfloat16, None])
def test_definition_in_every_type(dtype: torch.dtype, vectors: torch.dtype | None) -> None:
    torch.manual_seed(0)
    x = (torch.randn(3, 4, 17) * 3 + 1).to(dtype)
    weight, bias = (None if vectors is None else torch.randn(17).to(vectors) for _ in range(2))
    for given in ((weight, bias), (weight, None), (None, bias)):
        found, exact = reference.layer_norm(x, *given, 1e-3), written_out(x, *given, 1e-3)
        assert found.dtype == dtype
        assert (found.double() - exact).norm() <= FLOOR[dtype] * exact.norm()
        total = reference.forward(x, *given, None, 1e-3)[0]
        assert (total.double() - exact).norm() <= FLOOR[dtype] * exact.norm()


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_weight", [True, False])
def test_closed_gradient_is_autograds(with_weight: bool, with_bias: bool) -> None:
    torch.manual_seed(1)
    x, residual, grad, past = (torch.randn(2, 3, 9, dtype=torch.float64) for _ in range(4))
    x.requires_grad_()
    vectors = {"weight": with_weight, "bias": with_bias}
    given = {k: torch.randn(9, dtype=torch.float64, requires_grad=True) if v else None for k, v in vectors.items()}
    asked = [x, *(tensor for tensor in given.values() if tensor is not None)]
    expected = torch.autograd.grad(
        [written_out(x + residual, given["weight"], given["bias"], 1e-2), x + residual], asked, [grad, past]
    )
    with torch.no_grad():
        y, total, mean, rstd = reference.forward(x, given["weight"], given["bias"], residual, 1e-2)
        kinds = [None if tensor is None else tensor.dtype for tensor in given.values()]
        found = reference.backward(grad, past, total, given["weight"], mean, rstd, (kinds[0], kinds[1]))
    assert torch.equal(total, x + residual)
    torch.testing.assert_close([part for part in found if part is not None], list(expected), rtol=1e-11, atol=1e-11)
