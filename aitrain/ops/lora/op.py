"""Adapted linear layers of one input as one op: adapters are added inside matrix products, and only the input is kept.

Unfused, an adapter's output is written, scaled and added in three passes over an activation as large as the layer's,
and its inner activations are kept for the backward pass. Here the second adapter product accumulates into the layer's
own output, and the inner activation, r columns wide, is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from aitrain.errors import ShapeError
from aitrain.ops.lora import products
from aitrain.ops.lora.projection import NUMBERS, PARTS, Projection, laid_out, spread
from aitrain.ops.nf4.packed import Packed4bit
from aitrain.ops.registration import register


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor | Packed4bit,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Return `x W^T + bias + scaling x A^T B^T` for a frozen `W`: `lora_linears` of one projection.

    Args:
        x: `(..., K)`.
        weight: `(N, K)`, frozen, in numbers or in 4 bits.
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
    return lora_linears(x, [Projection(weight, bias, a, b, scaling)])[0]


def lora_linears(x: torch.Tensor, projections: Sequence[Projection]) -> tuple[torch.Tensor, ...]:
    """Return all projections of one input: queries, keys and values, or gate and up.

    `x` is read once for all adapters and kept once. Under autocast everything runs in its type; gradients of `a` and
    `b` come in their own types, summed in float32. 4-bit weights are turned into numbers before each product.

    Args:
        x: `(..., K)`.
        projections: At least one; ranks, factors, biases and types may differ, and some may lack an adapter.

    Returns:
        `(..., N)` for each, in the type of the products.

    Raises:
        ShapeError: Shapes do not fit, or a base layer wants a gradient, which this op does not give.

    Source:
        Hu et al. 2021, "LoRA", equation 3.
    """
    if not projections:
        raise ShapeError("lora_linears: give at least one projection")
    for each in projections:
        each.check(x.shape[-1])
    parts, numbers = laid_out(projections)
    scalings = [float(each.scaling) for each in projections]
    dtype = products_in(x)
    rows = x.reshape(-1, x.shape[-1])
    if torch.compiler.is_compiling() or type(rows) is not torch.Tensor:
        found = _forward_op(rows, [part for part in parts if part is not None], numbers, scalings, dtype)
    else:
        found = _LoraLinears.apply(rows, numbers, scalings, dtype, *parts)
    return tuple(out.view(*x.shape[:-1], out.shape[-1]) for out in found)


def products_in(x: torch.Tensor) -> torch.dtype:
    """Return the type in which products of this input run: autocast's, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def wanted_of(needed: Sequence[bool | None]) -> list[bool]:
    """Return which a and b want gradients, of what is known of all parts: a, b, a, b, ...

    Args:
        needed: For each of `parts`.
    """
    return [bool(needed[begin + at]) for begin in range(0, len(needed), PARTS) for at in (2, 3)]


def into_parts(grads: Sequence[Any]) -> list[Any]:
    """Return gradients of a, b, a, b, ... in their places among all parts.

    Args:
        grads: Two for each projection.
    """
    return [
        grads[2 * at + place - 2] if place in (2, 3) else None
        for at in range(len(grads) // 2)
        for place in range(PARTS)
    ]


class _LoraLinears(torch.autograd.Function):
    """Forward and backward by matrix products alone."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, numbers: list[int], scalings: list[float], dtype: torch.dtype, *parts: Any
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(x, *parts)
        ctx.rest = (numbers, scalings, dtype)
        ctx.set_materialize_grads(False)
        return tuple(products.forward(x, parts, numbers, scalings, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor | None) -> tuple[Any, ...]:
        x, *parts = ctx.saved_tensors
        needed = ctx.needs_input_grad
        wanted = [needed[0], *wanted_of(needed[4:])]
        numbers, scalings, dtype = ctx.rest
        found = products.backward(upstream, x, parts, numbers, scalings, dtype, wanted)
        return found[0], None, None, None, *into_parts(found[1:])


# What the compiler sees: lists without gaps.
def _forward(
    x: torch.Tensor, present: list[torch.Tensor], numbers: list[int], scalings: list[float], dtype: torch.dtype
) -> list[torch.Tensor]:
    return products.forward(x, spread(present, numbers), numbers, scalings, dtype)


def _fake(x: torch.Tensor, present: Any, numbers: list[int], scalings: Any, dtype: torch.dtype) -> list[torch.Tensor]:
    return [x.new_empty(len(x), width, dtype=dtype) for width in numbers[::NUMBERS]]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, present, *ctx.rest = inputs
    ctx.save_for_backward(x, *present)


def _compiled_backward(ctx: Any, upstream: list[torch.Tensor]) -> tuple[Any, ...]:
    x, *present = ctx.saved_tensors
    numbers = ctx.rest[0]
    needed = spread(ctx.needs_input_grad[1], numbers)
    wanted = [ctx.needs_input_grad[0], *wanted_of(needed)]
    found = _backward_op([grad.contiguous() for grad in upstream], x, present, *ctx.rest, wanted)
    grads = [grad if want else None for grad, want in zip(found, wanted, strict=True)]
    return grads[0], gaps_closed(into_parts(grads[1:]), numbers), None, None, None


def gaps_closed(grads: Sequence[Any], numbers: Sequence[int]) -> list[Any]:
    """Return what belongs to the parts that are there.

    Args:
        grads: One for each of `parts`.
        numbers: Of `laid_out`.
    """
    masks = numbers[NUMBERS - 1 :: NUMBERS]
    return [grad for at, grad in enumerate(grads) if masks[at // PARTS] >> at % PARTS & 1]


def _run_backward(
    upstream: list[torch.Tensor],
    x: torch.Tensor,
    present: list[torch.Tensor],
    numbers: list[int],
    scalings: list[float],
    dtype: torch.dtype,
    wanted: list[bool],
) -> list[torch.Tensor]:
    found = products.backward(upstream, x, spread(present, numbers), numbers, scalings, dtype, wanted)
    return [x.new_empty(0) if grad is None else grad for grad in found]


def _fake_backward(
    upstream: Any, x: torch.Tensor, present: Any, numbers: list[int], scalings: Any, dtype: Any, wanted: list[bool]
) -> list[torch.Tensor]:
    parts = spread(present, numbers)
    trained = [x, *(parts[begin + at] for begin in range(0, len(parts), PARTS) for at in (2, 3))]
    return [
        x.new_empty(part.shape, dtype=part.dtype) if want and part is not None else x.new_empty(0)
        for part, want in zip(trained, wanted, strict=True)
    ]


_backward_op = register(
    "lora_linears_backward(Tensor[] upstream, Tensor x, Tensor[] present, int[] numbers, float[] scalings, "
    "ScalarType dtype, bool[] wanted) -> Tensor[]",
    _run_backward,
    _fake_backward,
)
_forward_op = register(
    "lora_linears(Tensor x, Tensor[] present, int[] numbers, float[] scalings, ScalarType dtype) -> Tensor[]",
    _forward,
    _fake,
    _compiled_backward,
    _setup,
)
