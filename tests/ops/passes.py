"""Forward and backward pass of an op beside the same in torch and in float64, over layouts that real models have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ops.tolerance import assert_close_as_torch

Tensors = Mapping[str, torch.Tensor | None]


def leaf(tensor: torch.Tensor | None, dtype: torch.dtype | None = None) -> torch.Tensor | None:
    """Return a tensor of the same values and strides that collects gradients; an integer tensor as it is."""
    if tensor is None or not tensor.is_floating_point():
        return tensor
    detached = tensor.detach()
    return (detached if dtype is None else detached.to(dtype)).requires_grad_()


def run(function: Callable[..., Any], inputs: Tensors, upstream: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the outputs and then the gradients of every floating input.

    Args:
        function: Takes the inputs by name; gives one tensor or several.
        inputs: Leaves.
        upstream: Gradient of every output.
    """
    outputs = function(**inputs)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    asked = [tensor for tensor in inputs.values() if tensor is not None and tensor.requires_grad]
    given = [grad.to(out.dtype) for grad, out in zip(upstream, outputs, strict=True)]
    return [out.detach() for out in outputs] + list(torch.autograd.grad(outputs, asked, given))


def assert_passes(
    ours: Callable[..., Any],
    torchs: Callable[..., Any],
    inputs: Tensors,
    upstream: Sequence[torch.Tensor],
    floor: float | None = None,
) -> None:
    """Fail when outputs (2 times) or gradients (3 times) are further from float64 than torch is.

    Args:
        ours: The op.
        torchs: The same written in torch, run in the type of the inputs and in float64.
        inputs: Inputs by name.
        upstream: Gradient of every output; it must come out of the pass as it went in.
        floor: Relative error of an output that is always allowed; None = that of its type. Write it where an output has
            a finer type than the inputs, as a mean loss in fp32 of few rows in fp16 has: torch may be exact by luck.
    """
    before = [grad.clone() for grad in upstream]
    found = run(ours, {name: leaf(tensor) for name, tensor in inputs.items()}, upstream)
    assert all(torch.equal(a, b) for a, b in zip(before, upstream, strict=True)), "an incoming gradient was overwritten"
    usual = run(torchs, {name: leaf(tensor) for name, tensor in inputs.items()}, upstream)
    exact = run(torchs, {name: leaf(tensor, torch.float64) for name, tensor in inputs.items()}, upstream)
    for at, (mine, theirs, right) in enumerate(zip(found, usual, exact, strict=True)):
        is_output = at < len(upstream)
        factor, least = (2.0, floor) if is_output else (3.0, None)
        assert_close_as_torch(mine, theirs.to(mine.dtype), right, factor=factor, floor=least)


def draw(*shape: int, dtype: torch.dtype = torch.float32, layout: str = "plain", scale: float = 1.0) -> torch.Tensor:
    """Return normal draws from the seeded generator.

    Args:
        shape: Of the tensor.
        dtype: Of the tensor.
        layout: `plain`, `columns` (the left half of wider rows), `turned` (neighbouring features are not neighbours in
            memory), `swapped` (the two dimensions before the last are stored the other way round) or `expanded` (one
            row for all).
        scale: Standard deviation.
    """
    *lead, last = shape
    match layout:
        case "plain":
            made = torch.randn(shape) * scale
            return made.to(dtype)
        case "columns":
            return (torch.randn(*lead, 2 * last) * scale).to(dtype)[..., :last]
        case "turned":
            return (torch.randn(last, *lead) * scale).to(dtype).movedim(0, -1)
        case "swapped":
            *outer, left, right = lead
            return (torch.randn(*outer, right, left, last) * scale).to(dtype).transpose(-3, -2)
        case "expanded":
            return (torch.randn(last) * scale).to(dtype).expand(shape)
    raise AssertionError(f"no layout {layout}")
