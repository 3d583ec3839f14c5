"""Both passes of adapted projections of one input, as matrix products alone.

The inputs of all adapters are one product with their stacked A; every B adds into its layer's own output; the gradient
of x collects in one buffer. No activation-sized tensor is added, scaled or kept on the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aitrain.ops.lora.projection import NUMBERS, Parts, Slots, slots, weight_of

# M = rows of x, K = its width, N = width of an output, r = rank


def forward(
    x: torch.Tensor, parts: Parts, numbers: Sequence[int], scalings: Sequence[float], dtype: torch.dtype
) -> list[torch.Tensor]:
    """Return the outputs.

    Args:
        x: Shape (M, K).
        parts: Of `laid_out`.
        numbers: Of `laid_out`.
        scalings: Of the projections.
        dtype: Of the products.
    """
    x = x.to(dtype)
    every = list(slots(parts))
    columns = _columns(every)
    stack = _stacked(every, dtype)
    inner = None if stack is None else torch.mm(x, stack.t())
    found = []
    for at, held in enumerate(every):
        weight = weight_of(held, numbers[at * NUMBERS : (at + 1) * NUMBERS], dtype)
        out = torch.mm(x, weight.t()) if held.bias is None else torch.addmm(held.bias.to(dtype), x, weight.t())
        del weight  # 4-bit weights: one at a time
        if held.b is not None:
            assert inner is not None
            out.addmm_(inner[:, columns[at]], held.b.to(dtype).t(), alpha=scalings[at])
        found.append(out)
    return found


def backward(
    upstream: Sequence[torch.Tensor | None],
    x: torch.Tensor,
    parts: Parts,
    numbers: Sequence[int],
    scalings: Sequence[float],
    dtype: torch.dtype,
    wanted: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Return the gradients of x, of the first a and b, of the second, ..., None if they are not wanted.

    Args:
        upstream: Gradient of every output, None if there is none; not written to.
        x: As in the forward pass.
        parts: Likewise.
        numbers: Likewise.
        scalings: Likewise.
        dtype: Likewise.
        wanted: Which of the results.
    """
    every = list(slots(parts))
    above = [None if grad is None else grad.to(dtype) for grad in upstream]
    rows = x.to(dtype)
    columns, stack = _columns(every), _stacked(every, dtype)
    found: list[torch.Tensor | None] = [None] * len(wanted)
    inner = None  # (M, all r): the gradient of x A^T
    if stack is not None and (wanted[0] or any(wanted[1::2])):
        inner = rows.new_empty(len(rows), len(stack))
        for at, held in enumerate(every):
            if held.b is not None:
                piece, grad = inner[:, columns[at]], above[at]
                if grad is None:
                    piece.zero_()
                else:
                    piece.addmm_(grad, held.b.to(dtype), beta=0, alpha=scalings[at])
    if wanted[0]:
        found[0] = _to_x(above, every, numbers, dtype, rows, inner, stack).to(x.dtype)
    if any(wanted[1::2]):
        assert inner is not None
        to_stack = torch.mm(inner.t(), rows)
        for at, held in enumerate(every):
            if wanted[1 + 2 * at] and held.a is not None:
                found[1 + 2 * at] = to_stack[columns[at]].to(held.a.dtype, copy=True)
    if any(wanted[2::2]):
        assert stack is not None
        narrow = torch.mm(rows, stack.t())
        for at, held in enumerate(every):
            if wanted[2 + 2 * at] and held.b is not None:
                grad = above[at]
                to_b = rows.new_zeros(held.b.shape)
                if grad is not None:
                    to_b.addmm_(grad.t(), narrow[:, columns[at]], beta=0, alpha=scalings[at])
                found[2 + 2 * at] = to_b.to(held.b.dtype)
    return found


def _to_x(
    above: Sequence[torch.Tensor | None],
    every: Sequence[Slots],
    numbers: Sequence[int],
    dtype: torch.dtype,
    rows: torch.Tensor,
    inner: torch.Tensor | None,
    stack: torch.Tensor | None,
) -> torch.Tensor:
    found = None
    for at, (grad, held) in enumerate(zip(above, every, strict=True)):
        if grad is None:
            continue
        weight = weight_of(held, numbers[at * NUMBERS : (at + 1) * NUMBERS], dtype)
        found = torch.mm(grad, weight) if found is None else found.addmm_(grad, weight)
        del weight
    found = torch.zeros_like(rows) if found is None else found
    return found if inner is None or stack is None else found.addmm_(inner, stack)


def _columns(every: Sequence[Slots]) -> list[slice]:
    """Return which columns of the stacked product belong to each projection."""
    found, begin = [], 0
    for held in every:
        end = begin + (0 if held.a is None else len(held.a))
        found.append(slice(begin, end))
        begin = end
    return found


def _stacked(every: Sequence[Slots], dtype: torch.dtype) -> torch.Tensor | None:
    """Return all A below each other: shape (sum of r, K)."""
    present = [held.a.to(dtype) for held in every if held.a is not None]
    if not present:
        return None
    return present[0] if len(present) == 1 else torch.cat(present)
