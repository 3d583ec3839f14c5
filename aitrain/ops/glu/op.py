"""SwiGLU and GeGLU: the public functions, and what autograd and the compiler know of them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.autograd.function import once_differentiable

from aitrain.errors import ShapeError
from aitrain.ops.backend import use_kernels
from aitrain.ops.glu import reference
from aitrain.ops.registration import register

# F = features


def swiglu(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply SiLU of one half by the other: ``gate * sigmoid(gate) * up``.

    Only the inputs are kept for the backward pass, which computes the activation again.

    Args:
        gate: Shape (..., F), any strides with neighbouring features side by side, so that a half of a packed tensor is
            not copied. Without `up`: shape (..., 2 F), gate and then up; its gradient is then one tensor as well.
        up: Of the shape and type of `gate`.

    Returns:
        Shape (..., F), in the type of `gate`.

    Raises:
        ShapeError: The halves do not match, or a packed tensor has an odd width.

    Source:
        Shazeer, arXiv:2002.05202, eq. 6.
    """
    return _glu(gate, up, "silu")


def geglu(
    gate: torch.Tensor, up: torch.Tensor | None = None, approximate: Literal["tanh", "none"] = "tanh"
) -> torch.Tensor:
    """Multiply GELU of one half by the other.

    Args:
        gate: As in `swiglu`.
        up: As in `swiglu`.
        approximate: `tanh` (Gemma's `gelu_pytorch_tanh`) or `none` for the exact error function.

    Returns:
        Shape (..., F), in the type of `gate`.

    Raises:
        ShapeError: The halves do not match, a packed tensor has an odd width, or the approximation is unknown.

    Source:
        Shazeer, arXiv:2002.05202, eq. 6; Hendrycks and Gimpel, arXiv:1606.08415.
    """
    if approximate not in ("tanh", "none"):
        raise ShapeError(f"approximate={approximate!r} is unknown: write 'tanh' or 'none'")
    return _glu(gate, up, "gelu_tanh" if approximate == "tanh" else "gelu")


def _glu(gate: torch.Tensor, up: torch.Tensor | None, activation: str) -> torch.Tensor:
    if up is None and gate.shape[-1] % 2:
        raise ShapeError(f"packed gate and up {tuple(gate.shape)}: the last dimension must be even")
    if up is not None and (up.shape != gate.shape or up.dtype != gate.dtype):
        raise ShapeError(
            f"up {tuple(up.shape)} {up.dtype} for gate {tuple(gate.shape)} {gate.dtype}: they must have the same "
            f"shape and dtype"
        )
    if torch.compiler.is_compiling() or type(gate) is not torch.Tensor:
        return _REGISTERED(gate, up, activation)
    if not _has_kernel(gate):
        return reference.glu(gate, up, activation)
    return _Eager.apply(gate, up, activation)


def _has_kernel(gate: torch.Tensor) -> bool:
    return gate.dtype != torch.float64 and use_kernels(gate)


def _forward(gate: torch.Tensor, up: torch.Tensor | None, activation: str) -> torch.Tensor:
    if not _has_kernel(gate):
        return reference.glu(gate, up, activation)
    from aitrain.ops.glu import kernel

    return kernel.forward(gate, up, activation)


def _backward(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor | None, activation: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if not _has_kernel(gate):
        return reference.backward(grad, gate, up, activation)
    from aitrain.ops.glu import kernel

    return kernel.backward(grad, gate, up, activation)


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor | None, activation: str) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _forward(gate, up, activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        gate, up = ctx.saved_tensors
        return *_backward(grad, gate, up, ctx.activation), None


# What the compiler sees.
def _run(gate: torch.Tensor, up: torch.Tensor | None, activation: str) -> torch.Tensor:
    return _forward(gate, up, activation).contiguous()


def _fake(gate: torch.Tensor, up: torch.Tensor | None, activation: str) -> torch.Tensor:
    return gate.new_empty(gate.shape if up is not None else (*gate.shape[:-1], gate.shape[-1] // 2))


def _run_backward(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor | None, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    dgate, dup = _backward(grad, gate, up, activation)
    return dgate.contiguous(), gate.new_empty(0) if dup is None else dup.contiguous()


def _fake_backward(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor | None, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(0) if up is None else gate.new_empty(gate.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    gate, up, ctx.activation = inputs
    ctx.save_for_backward(gate, up)


def _compiled_gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
    gate, up = ctx.saved_tensors
    dgate, dup = _REGISTERED_BACKWARD(grad, gate, up, ctx.activation)
    return dgate, None if up is None else dup, None


_REGISTERED_BACKWARD = register(
    "glu_backward(Tensor grad, Tensor gate, Tensor? up, str activation) -> (Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
_REGISTERED = register(
    "glu(Tensor gate, Tensor? up, str activation) -> Tensor", _run, _fake, _compiled_gradients, _setup
)
