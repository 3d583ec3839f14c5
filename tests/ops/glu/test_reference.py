"""The definition is Hugging Face's, and the backward pass is autograd's."""

from __future__ import annotations

import pytest
import torch

from aitrain.ops.glu import reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_bit_is_hugging_faces(dtype: torch.dtype) -> None:
    from transformers.activations import ACT2FN

    torch.manual_seed(0)
    gate, up = torch.randn(3, 4, 18, dtype=dtype), torch.randn(3, 4, 18, dtype=dtype)
    for ours, theirs in zip(reference.ACTIVATIONS, ("silu", "gelu_pytorch_tanh", "gelu"), strict=True):
        expected = ACT2FN[theirs](gate) * up
        assert torch.equal(reference.glu(gate, up, ours), expected)
        # on strided halves torch takes another loop, whose exponential may differ in the last bit
        packed = reference.glu(torch.cat([gate, up], -1), None, ours)
        torch.testing.assert_close(packed, expected)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("packed", [True, False])
def test_backward_is_autograds(activation: str, packed: bool) -> None:
    torch.manual_seed(1)
    gate, up, grad = (torch.randn(4, 6, dtype=torch.float64, requires_grad=i < 2) for i in range(3))
    if packed:
        both = torch.cat([gate, up], -1).detach().requires_grad_()
        (expected,) = torch.autograd.grad(reference.glu(both, None, activation), both, grad)
        found, none = reference.backward(grad, both.detach(), None, activation)
        assert none is None
        torch.testing.assert_close(found, expected)
    else:
        expected = torch.autograd.grad(reference.glu(gate, up, activation), [gate, up], grad)
        torch.testing.assert_close(reference.backward(grad, gate.detach(), up.detach(), activation), expected)
    torch.autograd.gradcheck(lambda g, u: reference.glu(g, u, activation), (gate, up))


def test_halves_share_memory_with_the_packed_tensor() -> None:
    packed = torch.arange(12.0).reshape(2, 6)
    gate, up = reference.halves(packed, None)
    assert gate.tolist() == [[0.0, 1.0, 2.0], [6.0, 7.0, 8.0]]
    assert up.data_ptr() == packed.data_ptr() + 3 * 4
    assert reference.halves(gate, up) == (gate, up)
