"""One adapted projection, and how several are passed as arguments of an op."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from aitrain.errors import ShapeError
from aitrain.ops.nf4.op import run as dequantise
from aitrain.ops.nf4.packed import Packed4bit

Parts = Sequence[torch.Tensor | None]
"""`PARTS` entries for each projection, in the order of `Slots`."""

PARTS, NUMBERS = 9, 5


@dataclass(frozen=True, eq=False)
class Projection:
    """A frozen linear layer, `y = x W^T + bias + scaling x A^T B^T`."""

    weight: torch.Tensor | Packed4bit
    """Shape (N, K); in 4 bits it is turned into numbers for each product, in both passes, and never kept."""

    bias: torch.Tensor | None = None
    a: torch.Tensor | None = None
    """Shape (r, K); None, together with `b`, = no adapter here."""

    b: torch.Tensor | None = None
    scaling: float = 1.0
    """Factor of the adapter, alpha / r."""

    def check(self, inputs: int) -> None:
        """Raise `ShapeError` where the parts do not fit an input of this width, or the base wants a gradient."""
        shape, a, b = tuple(self.weight.shape), self.a, self.b
        if len(shape) != 2 or shape[1] != inputs:
            raise ShapeError(f"weight {shape} must be (N, {inputs}), as wide as x")
        if (a is None) != (b is None):
            raise ShapeError("a and b go together: give both or none")
        fits = a is None or b is None or (a.shape[1] == inputs and b.shape == (shape[0], a.shape[0]))
        if a is not None and b is not None and not fits:
            raise ShapeError(
                f"x (..., {inputs}), weight {shape}, a {tuple(a.shape)} and b {tuple(b.shape)} "
                "must be (..., K), (N, K), (r, K), (N, r)"
            )
        if self.bias is not None and self.bias.shape != shape[:1]:
            raise ShapeError(f"bias {tuple(self.bias.shape)} must be {shape[:1]}")
        trained = isinstance(self.weight, torch.Tensor) and self.weight.requires_grad
        if trained or (self.bias is not None and self.bias.requires_grad):
            raise ShapeError("the base layer must be frozen; train it with a plain linear layer instead")


class Slots(NamedTuple):
    """The tensors of one projection, None if there is none."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    a: torch.Tensor | None
    b: torch.Tensor | None
    code: torch.Tensor | None
    absmax: torch.Tensor | None
    nested_absmax: torch.Tensor | None
    nested_code: torch.Tensor | None
    offset: torch.Tensor | None


def laid_out(projections: Sequence[Projection]) -> tuple[list[torch.Tensor | None], list[int]]:
    """Return the tensors of all projections, and `NUMBERS` integers for each: N, K, block (0 = not in 4 bits), nested
    block, and which of the tensors are there, as bits.

    Args:
        projections: As the caller gave them.
    """
    parts: list[torch.Tensor | None] = []
    numbers: list[int] = []
    mine: list[torch.Tensor | None]
    for each in projections:
        held = each.weight
        if isinstance(held, Packed4bit):
            quantised = (held.code, held.absmax, held.nested_absmax, held.nested_code, held.offset)
            mine = [held.packed, each.bias, each.a, each.b, *quantised]
            numbers += [*held.shape, held.block, held.nested_block]
        else:
            mine = [held, each.bias, each.a, each.b, *[None] * (PARTS - 4)]
            numbers += [*held.shape, 0, 0]
        parts += mine
        numbers.append(sum(1 << at for at, part in enumerate(mine) if part is not None))
    return parts, numbers


def spread(present: Sequence[Any], numbers: Sequence[int]) -> list[Any]:
    """Return `parts` with its gaps, from those that are there: an op cannot differentiate a list with gaps.

    Args:
        present: `parts` without the Nones.
        numbers: Of `laid_out`.
    """
    given = iter(present)
    masks = numbers[NUMBERS - 1 :: NUMBERS]
    return [next(given) if mask >> at & 1 else None for mask in masks for at in range(PARTS)]


def slots(parts: Parts) -> Iterator[Slots]:
    """Yield the tensors of each projection.

    Args:
        parts: Of `laid_out`.
    """
    for begin in range(0, len(parts), PARTS):
        yield Slots(*parts[begin : begin + PARTS])  # type: ignore[arg-type]


def weight_of(held: Slots, numbers: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return the frozen weight, ready for a product.

    Args:
        held: The projection's tensors.
        numbers: The projection's own five.
        dtype: Of the product.
    """
    rows, columns, block, nested_block, _ = numbers
    if not block:
        return held.weight.to(dtype)
    assert held.code is not None and held.absmax is not None
    inner = (held.nested_absmax, held.nested_code, held.offset)
    return dequantise(held.weight, held.code, held.absmax, *inner, block, nested_block, (rows, columns), dtype)
