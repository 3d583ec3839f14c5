"""The adapted linear layer in plain PyTorch, differentiable by autograd: what the op must equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Return `x W^T + bias + scaling x A^T B^T`.

    Args:
        x: `(..., K)`.
        weight: `(N, K)`.
        bias: `(N,)` or None.
        a: `(r, K)`.
        b: `(N, r)`.
        scaling: Factor of the adapter.

    Source:
        Hu et al. 2021, "LoRA", equation 3.
    """
    return F.linear(x, weight, bias) + scaling * F.linear(F.linear(x, a), b)
