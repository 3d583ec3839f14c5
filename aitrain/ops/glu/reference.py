"""Gated linear units in plain PyTorch: the definition, in Hugging Face's order of roundings, and the CPU path."""

from __future__ import annotations

import torch
import torch.nn.functional as F

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")


def halves(gate: torch.Tensor, up: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return gate and up; views of one packed tensor (..., 2 F) if that is what `gate` is."""
    if up is not None:
        return gate, up
    features = gate.shape[-1] // 2
    return gate[..., :features], gate[..., features:]


def activated(gate: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the activation of the gate.

    Args:
        gate: Any shape.
        activation: One of `ACTIVATIONS`.
    """
    if activation == "silu":
        return F.silu(gate)
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")


def glu(gate: torch.Tensor, up: torch.Tensor | None, activation: str) -> torch.Tensor:
    """Return activation(gate) * up.

    Args:
        gate: Shape (..., F), or (..., 2 F) holding gate and up one after the other.
        up: Shape (..., F); None = it is in `gate`.
        activation: One of `ACTIVATIONS`.
    """
    if up is None:  # one node in the graph in place of two slices: its gradient is one concatenation
        gate, up = gate.chunk(2, dim=-1)
    return activated(gate, activation) * up


def backward(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor | None, activation: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the gradients of gate and up, or of the packed tensor and None.

    Args:
        grad: Gradient of the output.
        gate: As in the forward pass.
        up: As in the forward pass.
        activation: As in the forward pass.
    """
    left, right = halves(gate, up)
    scaled = grad * right
    if activation == "silu":
        slope = torch.ops.aten.silu_backward(scaled, left)
    else:
        kind = "tanh" if activation == "gelu_tanh" else "none"
        slope = torch.ops.aten.gelu_backward(scaled, left, approximate=kind)
    other = grad * activated(left, activation)
    return (torch.cat([slope, other], -1), None) if up is None else (slope.contiguous(), other.contiguous())
