"""LayerNorm in plain PyTorch: the definition by torch's own op, and its two passes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from aitrain.ops.rms_norm.reference import wide

# M = rows (all leading dimensions), N = features


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Bring every row to mean 0 and variance 1, then scale and shift it.

    Args:
        x: Shape (..., N).
        weight: Shape (N,); None = 1.
        bias: Shape (N,); None = 0.
        eps: Added to the variance.
    """
    types = {tensor.dtype for tensor in (x, weight, bias) if tensor is not None}
    if len(types) == 1:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    full = wide(x.dtype)
    scale, shift = (None if tensor is None else tensor.to(full) for tensor in (weight, bias))
    return F.layer_norm(x.to(full), x.shape[-1:], scale, shift, eps).to(x.dtype)


def forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, x + residual (`x` itself without one), and mean and 1 / standard deviation of every row, shape (M,)."""
    total = x if residual is None else x + residual
    full = wide(x.dtype)
    scale, shift = (None if tensor is None else tensor.to(full) for tensor in (weight, bias))
    y, mean, rstd = torch.native_layer_norm(total.to(full), x.shape[-1:], scale, shift, eps)
    return y.to(x.dtype), total, mean.reshape(-1), rstd.reshape(-1)


def backward(
    grad: torch.Tensor,
    grad_total: torch.Tensor | None,
    total: torch.Tensor,
    weight: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    sums: tuple[torch.dtype | None, torch.dtype | None],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients of `total`, weight and bias.

    Args:
        grad: Gradient of y.
        grad_total: Gradient that reaches `total` past the norm.
        total: What was normalised.
        weight: As in the forward pass.
        mean: As the forward pass gave it.
        rstd: As the forward pass gave it.
        sums: Type of the gradients of weight and of bias; None = not wanted.
    """
    full, features = rstd.dtype, total.shape[-1]
    flat, up = (tensor.reshape(-1, features).to(full).contiguous() for tensor in (total, grad))
    scale = None if weight is None else weight.to(full)
    statistics = mean.unsqueeze(1), rstd.unsqueeze(1)
    # torch's backward gives a bias gradient only where it is shown a bias; its values are not read
    shift = None if sums[1] is None else torch.empty(features, dtype=full, device=grad.device)
    wanted = [True, sums[0] is not None, sums[1] is not None]
    found = torch.ops.aten.native_layer_norm_backward(up, flat, [features], *statistics, scale, shift, wanted)
    dx = found[0].reshape(total.shape)
    if grad_total is not None:
        dx += grad_total
    dweight, dbias = (None if kind is None else part.to(kind) for kind, part in zip(sums, found[1:], strict=True))
    return dx.to(total.dtype), dweight, dbias
