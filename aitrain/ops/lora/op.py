"""The adapted linear layer as one op: the adapter is added inside a matrix product, and only the input is kept.

Unfused, the adapter's output is written, scaled and added in three passes over an activation as large as the layer's,
and its two inner activations are kept for the backward pass. Here the second adapter product accumulates into the
layer's own output, and the inner activation, r columns wide, is made again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from aitrain.errors import ShapeError
from aitrain.ops.registration import register


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Return `x W^T + bias + scaling x A^T B^T` for a frozen `W`.

    Under autocast everything runs in its type; gradients of `a` and `b` come in their own types, summed in float32.

    Args:
        x: `(..., K)`.
        weight: `(N, K)`, frozen.
        bias: `(N,)`, frozen, or None.
        a: `(r, K)`; another floating type than `x` is cast to it.
        b: `(N, r)`; likewise.
        scaling: Factor of the adapter, alpha / r.

    Returns:
        `(..., N)` in the type of the products.

    Raises:
        ShapeError: Shapes do not fit, or `weight` or `bias` wants a gradient, which this op does not give.

    Source:
        Hu et al. 2021, "LoRA", equation 3.
    """
    rank, inputs = a.shape
    if x.shape[-1] != inputs or weight.shape != (b.shape[0], inputs) or b.shape[1] != rank:
        raise ShapeError(
            f"lora_linear: x {tuple(x.shape)}, weight {tuple(weight.shape)}, a {tuple(a.shape)} and b {tuple(b.shape)} "
            "must be (..., K), (N, K), (r, K), (N, r)"
        )
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ShapeError("lora_linear: the base layer must be frozen; train it with a plain linear layer instead")
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    rows = x.reshape(-1, inputs)
    if torch.compiler.is_compiling():
        out: torch.Tensor = _forward_op(rows, weight, bias, a, b, scaling, dtype)
    else:
        out = _LoraLinear.apply(rows, weight, bias, a, b, scaling, dtype)
    return out.view(*x.shape[:-1], len(b))


class _LoraLinear(torch.autograd.Function):
    """Forward and backward by matrix products alone."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        _setup(ctx, inputs, None)
        return _forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:
        x, weight, a, b = ctx.saved_tensors
        found = _backward(upstream, x, weight, a, b, ctx.scaling, ctx.dtype, list(ctx.needs_input_grad))
        return found[0], None, None, found[1], found[2], None, None


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    x, weight = x.to(dtype), weight.to(dtype)
    out = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias.to(dtype), x, weight.t())
    return out.addmm_(torch.mm(x, a.to(dtype).t()), b.to(dtype).t(), alpha=scaling)


def _backward(
    upstream: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    dtype: torch.dtype,
    wanted: list[bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients of x, a and b, None where not wanted (`wanted` follows the forward's arguments)."""
    upstream, rows = upstream.to(dtype), x.to(dtype)
    narrow_a, narrow_b = a.to(dtype), b.to(dtype)
    inner = torch.mm(upstream, narrow_b)  # (M, r): the gradient of x A^T, without the scaling
    to_x = to_a = to_b = None
    if wanted[0]:
        to_x = torch.mm(upstream, weight.to(dtype)).addmm_(inner, narrow_a, alpha=scaling).to(x.dtype)
    if wanted[3]:
        to_a = torch.mm(inner.t(), rows).to(a.dtype).mul_(scaling)
    if wanted[4]:
        to_b = torch.mm(upstream.t(), torch.mm(rows, narrow_a.t())).to(b.dtype).mul_(scaling)
    return to_x, to_a, to_b


def _fake(x: torch.Tensor, weight: torch.Tensor, bias: Any, a: Any, b: Any, scaling: float, dtype: torch.dtype) -> Any:
    return x.new_empty(len(x), len(weight), dtype=dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, _, a, b, ctx.scaling, ctx.dtype = inputs
    ctx.save_for_backward(x, weight, a, b)


def _compiled_backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:
    x, weight, a, b = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad)
    found = _backward_op(upstream.contiguous(), x, weight, a, b, ctx.scaling, ctx.dtype, wanted)
    to_x, to_a, to_b = (g if want else None for g, want in zip(found, (wanted[0], *wanted[3:5]), strict=True))
    return to_x, None, None, to_a, to_b, None, None


def _run_backward(*inputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty(0, device=inputs[0].device) if g is None else g for g in _backward(*inputs))


def _fake_backward(
    upstream: torch.Tensor, x: torch.Tensor, weight: Any, a: torch.Tensor, b: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    wanted = (rest[2][0], *rest[2][3:5])
    return tuple(
        torch.empty(g.shape, dtype=g.dtype, device=g.device) if want else torch.empty(0, device=g.device)
        for g, want in zip((x, a, b), wanted, strict=True)
    )


_backward_op = register(
    "lora_linear_backward(Tensor upstream, Tensor x, Tensor weight, Tensor a, Tensor b, float scaling, "
    "ScalarType dtype, bool[] wanted) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
_forward_op = register(
    "lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, float scaling, ScalarType dtype) -> Tensor",
    _forward,
    _fake,
    _compiled_backward,
    _setup,
)
