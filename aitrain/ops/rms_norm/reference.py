"""RMSNorm in plain PyTorch: the definition, differentiable by autograd, and its gradient in closed form."""

from __future__ import annotations

import torch

# M = rows (all leading dimensions), N = features


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which norms are computed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, eps: float, offset: float = 0.0, round_first: bool = True
) -> torch.Tensor:
    """Scale every row to unit root-mean-square, then by the weight.

    Args:
        x: Shape (..., N).
        weight: Shape (N,); None = 1.
        eps: Added to the mean square.
        offset: Added to the weight.
        round_first: Whether the normalised value is rounded to the type of `x` before the weight multiplies it.
    """
    full = x.to(wide(x.dtype))
    normed = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + eps)
    if round_first:
        normed = normed.to(x.dtype)
    if weight is None:
        return normed.to(x.dtype)
    return (normed.to(full.dtype) * (weight.to(full.dtype) + offset)).to(x.dtype)


def forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
    offset: float,
    round_first: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, x + residual (`x` itself without one) and 1 / rms of every row, shape (M,).

    The same as `rms_norm` in fewer passes over memory; autograd does not see through it.
    """
    total = x if residual is None else x + residual
    full = total.to(wide(x.dtype))
    length = torch.linalg.vector_norm(full, dim=-1, keepdim=True)
    rstd = torch.rsqrt(length.square_().div_(x.shape[-1]).add_(eps))
    y = full * rstd if full is total else full.mul_(rstd)
    if weight is not None:
        if round_first and y.dtype != x.dtype:
            y.copy_(y.to(x.dtype))
        y.mul_(weight + offset if offset else weight) if weight.dtype == y.dtype else y.mul_(
            weight.to(y.dtype) + offset
        )
    return y.to(x.dtype), total, rstd.reshape(-1)


def backward(
    grad: torch.Tensor,
    grad_total: torch.Tensor | None,
    total: torch.Tensor,
    weight: torch.Tensor | None,
    rstd: torch.Tensor,
    offset: float,
    with_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the gradients of `total` and, `with_weight`, of the weight.

    Args:
        grad: Gradient of y.
        grad_total: Gradient that reaches `total` past the norm.
        total: What was normalised.
        weight: As in the forward pass.
        rstd: As the forward pass gave it.
        offset: As in the forward pass.
        with_weight: Whether the weight's gradient is wanted.
    """
    type_, features = rstd.dtype, total.shape[-1]
    full, up = (tensor.reshape(-1, features).to(type_) for tensor in (total, grad))
    product = up * full
    scale = torch.ones(features, dtype=type_, device=grad.device) if weight is None else weight.to(type_) + offset
    # both sums over the product are matrix-vector products: over columns for x, over rows for the weight
    inner = (product @ scale).mul_(rstd.pow(3)).div_(-features)
    dweight = (rstd @ product).to(weight.dtype) if with_weight and weight is not None else None
    dx = torch.mul(up, scale, out=product).mul_(rstd.unsqueeze(1)).addcmul_(full, inner.unsqueeze(1))
    dx = dx.reshape(total.shape)
    if grad_total is not None:
        dx += grad_total
    return dx.to(total.dtype), dweight
