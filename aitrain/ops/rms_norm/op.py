"""RMSNorm: the public function, and what autograd and the compiler know of it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.autograd.function import once_differentiable

from aitrain.errors import ShapeError
from aitrain.ops.backend import use_kernels
from aitrain.ops.registration import register
from aitrain.ops.rms_norm import reference

# N = features, M = rows (all leading dimensions)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float = 1e-6,
    residual: torch.Tensor | None = None,
    offset: float = 0.0,
    cast: Literal["llama", "gemma"] = "llama",
) -> Any:
    """Scale every row to unit root-mean-square, then by a learned weight; add a residual first if there is one.

    Computes ``y = x / sqrt(mean(x**2, dim=-1) + eps) * (offset + weight)`` in float32.

    Args:
        x: Activations, shape (..., N); any strides, but neighbouring features must be neighbours in memory to spare a
            copy.
        weight: Learned scale, shape (N,), in the type of `x` or float32; None = 1.
        eps: Added to the mean square, in squared units of `x`.
        residual: Added to `x` before the norm, of its shape and type; the sum is rounded to that type.
        offset: Added to the weight: 1 for Gemma, whose weights are stored as the difference to 1.
        cast: `llama` rounds the normalised value to the type of `x` before the weight multiplies it (Llama, Qwen,
            Mistral, Phi), `gemma` rounds once at the end (Gemma, OLMo 2).

    Returns:
        y in the shape and type of `x`; with a residual the pair of y and the sum.

    Raises:
        ShapeError: `weight` is not (N,), the residual does not match, or the cast is unknown.

    Source:
        Zhang and Sennrich, arXiv:1910.07467, eq. 4; the cast orders are those of Hugging Face transformers.
    """
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ShapeError(f"weight {tuple(weight.shape)} for x {tuple(x.shape)}: it must be ({x.shape[-1]},)")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ShapeError(
            f"residual {tuple(residual.shape)} {residual.dtype} for x {tuple(x.shape)} {x.dtype}: they must have the "
            f"same shape and dtype"
        )
    if cast not in ("llama", "gemma"):
        raise ShapeError(f"cast={cast!r} is unknown: write 'llama' or 'gemma'")
    arguments = (x, weight, residual, float(eps), float(offset), cast == "llama")
    if torch.compiler.is_compiling() or type(x) is not torch.Tensor:
        y, total, _ = _REGISTERED(*arguments)
    else:
        y, total = _Eager.apply(*arguments)
    return y if residual is None else (y, total)


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
    offset: float,
    round_first: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, what was normalised (`x` itself without a residual) and 1 / rms of every row."""
    if x.dtype == torch.float64 or not use_kernels(x):
        return reference.forward(x, weight, residual, eps, offset, round_first)
    from aitrain.ops.rms_norm import kernel

    norm = kernel.Norm(False, offset, round_first)
    y, total, _, rstd = kernel.forward(x, residual, weight, None, eps, norm)
    return y, total, rstd


def _backward(
    grad: torch.Tensor,
    grad_total: torch.Tensor | None,
    total: torch.Tensor,
    weight: torch.Tensor | None,
    rstd: torch.Tensor,
    offset: float,
    with_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if total.dtype == torch.float64 or not use_kernels(total):
        return reference.backward(grad, grad_total, total, weight, rstd, offset, with_weight)
    from aitrain.ops.rms_norm import kernel

    norm = kernel.Norm(False, offset)
    sums = (weight.dtype if with_weight and weight is not None else None, None)
    return kernel.backward(grad, grad_total, total, weight, None, rstd, norm, sums)[:2]


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, weight, residual, _, ctx.offset, _ = arguments
        y, total, rstd = _forward(*arguments)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, weight, rstd)
        return y, None if residual is None else total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor | None, grad_total: torch.Tensor | None) -> tuple[Any, ...]:
        total, weight, rstd = ctx.saved_tensors
        dx, dweight = _gradients(grad, grad_total, total, weight, rstd, ctx.offset, ctx.needs_input_grad[1])
        return dx, dweight, dx if ctx.needs_input_grad[2] else None, None, None, None


def _gradients(
    grad: torch.Tensor | None, grad_total: torch.Tensor | None, total: torch.Tensor, *arguments: Any
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if grad is None:  # y was not used, the sum perhaps
        return grad_total, None
    return _backward(grad, grad_total, total, *arguments)


# What the compiler sees. An output may be no input, so without a residual the sum is an empty tensor.
def _run(x: torch.Tensor, weight: Any, residual: torch.Tensor | None, *how: Any) -> tuple[torch.Tensor, ...]:
    y, total, rstd = _forward(x, weight, residual, *how)
    return y, x.new_empty(0) if residual is None else total, rstd


def _fake(x: torch.Tensor, weight: Any, residual: torch.Tensor | None, *how: Any) -> tuple[torch.Tensor, ...]:
    y = x.new_empty(x.shape)
    total = x.new_empty(0) if residual is None else x.new_empty(x.shape)
    return y, total, x.new_empty(x.shape[:-1].numel(), dtype=reference.wide(x.dtype))


def _run_backward(
    grad: torch.Tensor, grad_total: torch.Tensor | None, total: torch.Tensor, weight: torch.Tensor | None, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    dx, dweight = _backward(grad, grad_total, total, weight, *rest)
    return dx, total.new_empty(0) if dweight is None else dweight


def _fake_backward(
    grad: torch.Tensor,
    grad_total: torch.Tensor | None,
    total: torch.Tensor,
    weight: torch.Tensor | None,
    rstd: torch.Tensor,
    offset: float,
    with_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    dweight = total.new_empty(0) if weight is None or not with_weight else weight.new_empty(weight.shape)
    return total.new_empty(total.shape), dweight


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, weight, residual, _, ctx.offset, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if residual is None else output[1], weight, output[2])
    ctx.alone = residual is None


def _compiled_gradients(
    ctx: Any, grad: torch.Tensor | None, grad_total: torch.Tensor | None, _: torch.Tensor | None
) -> tuple[Any, ...]:
    total, weight, rstd = ctx.saved_tensors
    if ctx.alone:
        grad_total = None
    if grad is None:
        return grad_total, None, grad_total, None, None, None
    with_weight = weight is not None and ctx.needs_input_grad[1]
    dx, dweight = _REGISTERED_BACKWARD(grad, grad_total, total, weight, rstd, ctx.offset, with_weight)
    return dx, dweight if with_weight else None, None if ctx.alone else dx, None, None, None


_REGISTERED_BACKWARD = register(
    "rms_norm_backward(Tensor grad, Tensor? grad_total, Tensor total, Tensor? weight, Tensor rstd, float offset, "
    "bool with_weight) -> (Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
_REGISTERED = register(
    "rms_norm(Tensor x, Tensor? weight, Tensor? residual, float eps, float offset, bool round_first) "
    "-> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
    _compiled_gradients,
    _setup,
)
