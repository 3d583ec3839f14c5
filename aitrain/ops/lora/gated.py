"""A gated MLP with adapters: the activation is made again in the backward pass; x, gate and up are all that is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from aitrain.errors import ShapeError
from aitrain.ops.glu.op import geglu, swiglu
from aitrain.ops.lora import products
from aitrain.ops.lora.op import gaps_closed, into_parts, lora_linears, products_in, wanted_of
from aitrain.ops.lora.projection import PARTS, Projection, laid_out, spread
from aitrain.ops.registration import register

GATES: dict[str, Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "silu": swiglu,
    "gelu_tanh": geglu,
    "gelu": lambda gate, up: geglu(gate, up, approximate="none"),
}
"""Activation of the gate -> the product of both halves."""


def lora_mlp(
    x: torch.Tensor, gate: Projection, up: Projection | None, down: Projection, activation: str = "silu"
) -> torch.Tensor:
    """Return `down(activation(gate(x)) * up(x))`.

    Args:
        x: `(..., K)`.
        gate: `(F, K)`; without `up`: `(2 F, K)`, gate and then up.
        up: `(F, K)` or None.
        down: `(N, F)`.
        activation: `silu` (SwiGLU), `gelu_tanh` or `gelu` (GeGLU).

    Returns:
        `(..., N)` in the type of the products.

    Raises:
        ShapeError: Shapes do not fit, a base layer wants a gradient, or the activation is unknown.

    Source:
        Shazeer, arXiv:2002.05202, eq. 6; Hu et al. 2021, "LoRA", equation 3.
    """
    halves = lora_linears(x, [gate] if up is None else [gate, up])
    return gated_lora_linear(halves[0], None if up is None else halves[1], down, activation)


def gated_lora_linear(
    gate: torch.Tensor, up: torch.Tensor | None, down: Projection, activation: str = "silu"
) -> torch.Tensor:
    """Return an adapted projection of `activation(gate) * up`, keeping gate and up only.

    Args:
        gate: `(..., F)`, or `(..., 2 F)` without `up`.
        up: Like `gate`, or None.
        down: `(N, F)`.
        activation: As in `lora_mlp`.

    Returns:
        `(..., N)` in the type of the products.

    Raises:
        ShapeError: As in `lora_mlp`.
    """
    if activation not in GATES:
        raise ShapeError(f"activation={activation!r} is unknown: write {', '.join(GATES)}")
    if up is not None and (up.shape != gate.shape or up.dtype != gate.dtype):
        raise ShapeError(
            f"up {tuple(up.shape)} {up.dtype} for gate {tuple(gate.shape)} {gate.dtype}: they must have the same "
            f"shape and dtype"
        )
    width = gate.shape[-1]
    if up is None and width % 2:
        raise ShapeError(f"packed gate and up {tuple(gate.shape)}: the last dimension must be even")
    down.check(width if up is not None else width // 2)
    parts, numbers = laid_out([down])
    dtype, scaling = products_in(gate), float(down.scaling)
    left, right = gate.reshape(-1, width), None if up is None else up.reshape(-1, width)
    if torch.compiler.is_compiling() or type(left) is not torch.Tensor:
        present = [part for part in parts if part is not None]
        out: torch.Tensor = _forward_op(left, right, present, numbers, scaling, activation, dtype)
    else:
        out = _Gated.apply(left, right, numbers, scaling, activation, dtype, *parts)
    return out.view(*gate.shape[:-1], out.shape[-1])


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor | None, *rest: Any) -> torch.Tensor:
        numbers, scaling, activation, dtype, *parts = rest
        ctx.save_for_backward(gate, up, *parts)
        ctx.rest = (numbers, scaling, activation, dtype)
        return _forward(gate, up, parts, *ctx.rest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:
        gate, up, *parts = ctx.saved_tensors
        needed = ctx.needs_input_grad
        wanted = [any(needed[:2]), *wanted_of(needed[6:])]
        numbers, scaling, activation, dtype = ctx.rest
        found = _backward(upstream, gate, up, parts, numbers, scaling, activation, dtype, wanted)
        return *found[:2], None, None, None, None, *into_parts(found[2:])


def _forward(
    gate: torch.Tensor,
    up: torch.Tensor | None,
    parts: Any,
    numbers: list[int],
    scaling: float,
    activation: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    return products.forward(GATES[activation](gate, up), parts, numbers, [scaling], dtype)[0]


def _backward(
    upstream: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor | None,
    parts: Any,
    numbers: list[int],
    scaling: float,
    activation: str,
    dtype: torch.dtype,
    wanted: list[bool],
) -> list[torch.Tensor | None]:
    """Return the gradients of gate, up, a and b; `wanted` names both halves at once, a and b."""
    inner = GATES[activation](gate, up)
    to_inner, *others = products.backward([upstream], inner, parts, numbers, [scaling], dtype, wanted)
    del inner
    if to_inner is None:
        return [None, None, *others]
    to_gate, to_up = torch.ops.aitrain.glu_backward(to_inner, gate, up, activation)
    return [to_gate, None if up is None else to_up, *others]


# What the compiler sees: lists without gaps.
def _run(
    gate: torch.Tensor,
    up: torch.Tensor | None,
    present: list[torch.Tensor],
    numbers: list[int],
    scaling: float,
    activation: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    return _forward(gate, up, spread(present, numbers), numbers, scaling, activation, dtype)


def _fake(gate: torch.Tensor, up: Any, present: Any, numbers: list[int], *rest: Any) -> torch.Tensor:
    return gate.new_empty(len(gate), numbers[0], dtype=rest[-1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    gate, up, present, *ctx.rest = inputs
    ctx.save_for_backward(gate, up, *present)


def _compiled_backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:
    gate, up, *present = ctx.saved_tensors
    numbers = ctx.rest[0]
    needed = ctx.needs_input_grad
    wanted = [any(needed[:2]), *wanted_of(spread(needed[2], numbers))]
    found = _backward_op(upstream.contiguous(), gate, up, present, *ctx.rest, wanted)
    to_gate, to_up, *others = found
    others = [grad if want else None for grad, want in zip(others, wanted[1:], strict=True)]
    to_gate = to_gate if wanted[0] else None
    to_up = to_up if wanted[0] and up is not None else None
    return to_gate, to_up, gaps_closed(into_parts(others), numbers), None, None, None, None


def _run_backward(
    upstream: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor | None,
    present: list[torch.Tensor],
    numbers: list[int],
    scaling: float,
    activation: str,
    dtype: torch.dtype,
    wanted: list[bool],
) -> list[torch.Tensor]:
    parts = spread(present, numbers)
    found = _backward(upstream, gate, up, parts, numbers, scaling, activation, dtype, wanted)
    return [gate.new_empty(0) if grad is None else grad for grad in found]


def _fake_backward(
    upstream: Any, gate: torch.Tensor, up: Any, present: Any, numbers: list[int], *rest: Any
) -> list[torch.Tensor]:
    wanted = rest[-1]
    parts = spread(present, numbers)
    assert len(parts) == PARTS
    trained = zip((gate, up, parts[2], parts[3]), (wanted[0], *wanted), strict=True)
    return [
        gate.new_empty(part.shape, dtype=part.dtype) if want and part is not None else gate.new_empty(0)
        for part, want in trained
    ]


_WORDS = "Tensor[] present, int[] numbers, float scaling, str activation, ScalarType dtype"
_backward_op = register(
    f"gated_lora_linear_backward(Tensor upstream, Tensor gate, Tensor? up, {_WORDS}, bool[] wanted) -> Tensor[]",
    _run_backward,
    _fake_backward,
)
_forward_op = register(
    f"gated_lora_linear(Tensor gate, Tensor? up, {_WORDS}) -> Tensor", _run, _fake, _compiled_backward, _setup
)
