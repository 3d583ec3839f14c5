"""LayerNorm: the public function, and what autograd and the compiler know of it."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from aitrain.errors import ShapeError
from aitrain.ops.backend import use_kernels
from aitrain.ops.layer_norm import reference
from aitrain.ops.registration import register
from aitrain.ops.rms_norm.reference import wide

# N = features, M = rows (all leading dimensions)


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    residual: torch.Tensor | None = None,
) -> Any:
    """Bring every row to mean 0 and variance 1, then scale and shift it; add a residual first if there is one.

    Computes ``y = (x - mean) / sqrt(variance + eps) * weight + bias`` in float32 and rounds once.

    Args:
        x: Activations, shape (..., N); any strides, but neighbouring features must be neighbours in memory to spare a
            copy.
        weight: Learned scale, shape (N,), in the type of `x` or float32; None = 1.
        bias: Learned shift, likewise; None = 0.
        eps: Added to the variance, in squared units of `x`.
        residual: Added to `x` before the norm, of its shape and type; the sum is rounded to that type.

    Returns:
        y in the shape and type of `x`, under autocast too; with a residual the pair of y and the sum.

    Raises:
        ShapeError: `weight` or `bias` is not (N,), or the residual does not match.

    Source:
        Ba, Kiros and Hinton, arXiv:1607.06450, eq. 3.
    """
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and vector.shape != x.shape[-1:]:
            raise ShapeError(f"{name} {tuple(vector.shape)} for x {tuple(x.shape)}: it must be ({x.shape[-1]},)")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ShapeError(
            f"residual {tuple(residual.shape)} {residual.dtype} for x {tuple(x.shape)} {x.dtype}: they must have the "
            f"same shape and dtype"
        )
    if torch.compiler.is_compiling() or type(x) is not torch.Tensor:
        y, total, *_ = _REGISTERED(x, weight, bias, residual, float(eps))
    elif _has_kernel(x):
        y, total = _Eager.apply(x, weight, bias, residual, float(eps))
    else:
        total = x if residual is None else x + residual
        y = reference.layer_norm(total, weight, bias, eps)
    return y if residual is None else (y, total)


def _has_kernel(x: torch.Tensor) -> bool:
    return x.dtype != torch.float64 and use_kernels(x)


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, what was normalised (`x` itself without a residual), and mean and 1 / deviation of every row."""
    if not _has_kernel(x):
        return reference.forward(x, weight, bias, residual, eps)
    from aitrain.ops.rms_norm import kernel

    y, total, mean, rstd = kernel.forward(x, residual, weight, bias, eps, kernel.Norm(centred=True))
    assert mean is not None, "a centred norm has means"
    return y, total, mean, rstd


def _backward(
    grad: torch.Tensor,
    grad_total: torch.Tensor | None,
    total: torch.Tensor,
    weight: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    sums: tuple[torch.dtype | None, torch.dtype | None],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    if not _has_kernel(total):
        return reference.backward(grad, grad_total, total, weight, mean, rstd, sums)
    from aitrain.ops.rms_norm import kernel

    return kernel.backward(grad, grad_total, total, weight, mean, rstd, kernel.Norm(centred=True), sums)


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        _, weight, bias, residual, _ = arguments
        y, total, mean, rstd = _forward(*arguments)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, weight, mean, rstd)
        ctx.types = [None if vector is None else vector.dtype for vector in (weight, bias)]
        return y, None if residual is None else total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor | None, grad_total: torch.Tensor | None) -> tuple[Any, ...]:
        wanted = ctx.needs_input_grad
        if grad is None:  # y was not used, the sum was
            return grad_total, None, None, grad_total if wanted[3] else None, None
        total, weight, mean, rstd = ctx.saved_tensors
        sums = (ctx.types[0] if wanted[1] else None, ctx.types[1] if wanted[2] else None)
        dx, dweight, dbias = _backward(grad, grad_total, total, weight, mean, rstd, sums)
        return dx, dweight, dbias, dx if wanted[3] else None, None


# What the compiler sees. An output may be no input, so without a residual the sum is an empty tensor.
def _run(x: torch.Tensor, weight: Any, bias: Any, residual: Any, eps: float) -> tuple[torch.Tensor, ...]:
    y, total, mean, rstd = _forward(x, weight, bias, residual, eps)
    return y, x.new_empty(0) if residual is None else total, mean, rstd


def _fake(x: torch.Tensor, weight: Any, bias: Any, residual: Any, eps: float) -> tuple[torch.Tensor, ...]:
    total = x.new_empty(0) if residual is None else x.new_empty(x.shape)
    mean = x.new_empty(x.shape[:-1].numel(), dtype=wide(x.dtype))
    return x.new_empty(x.shape), total, mean, torch.empty_like(mean)


def _run_backward(
    grad: torch.Tensor,
    grad_total: torch.Tensor | None,
    total: torch.Tensor,
    weight: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight_type: torch.dtype | None,
    bias_type: torch.dtype | None,
) -> tuple[torch.Tensor, ...]:
    dx, dweight, dbias = _backward(grad, grad_total, total, weight, mean, rstd, (weight_type, bias_type))
    if dweight is not None and dbias is not None:
        dbias = dbias.clone()  # both are rows of one tensor, and outputs of an op may not share memory
    return dx, *(total.new_empty(0) if part is None else part for part in (dweight, dbias))


def _fake_backward(
    grad: torch.Tensor,
    grad_total: torch.Tensor | None,
    total: torch.Tensor,
    weight: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight_type: torch.dtype | None,
    bias_type: torch.dtype | None,
) -> tuple[torch.Tensor, ...]:
    sums = (
        total.new_empty(0) if kind is None else total.new_empty(total.shape[-1], dtype=kind)
        for kind in (weight_type, bias_type)
    )
    return total.new_empty(total.shape), *sums


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, weight, bias, residual, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.alone = residual is None
    ctx.save_for_backward(x if ctx.alone else output[1], weight, *output[2:])
    ctx.types = [None if vector is None else vector.dtype for vector in (weight, bias)]


def _compiled_gradients(ctx: Any, grad: torch.Tensor | None, grad_total: torch.Tensor | None, *_: Any) -> Any:
    if ctx.alone:
        grad_total = None
    if grad is None:
        return grad_total, None, None, grad_total, None
    wanted = ctx.needs_input_grad
    sums = [kind if want else None for kind, want in zip(ctx.types, wanted[1:3], strict=True)]
    dx, *found = _REGISTERED_BACKWARD(grad, grad_total, *ctx.saved_tensors, *sums)
    dweight, dbias = (None if kind is None else part for kind, part in zip(sums, found, strict=True))
    return dx, dweight, dbias, None if ctx.alone else dx, None


_REGISTERED_BACKWARD = register(
    "layer_norm_backward(Tensor grad, Tensor? grad_total, Tensor total, Tensor? weight, Tensor mean, Tensor rstd, "
    "ScalarType? weight_type, ScalarType? bias_type) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
_REGISTERED = register(
    "layer_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
    _compiled_gradients,
    _setup,
)
