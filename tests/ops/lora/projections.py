"""Projections of every kind, and the same written as plain layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from aitrain.ops.lora.projection import Projection
from aitrain.ops.lora.reference import lora_linear
from aitrain.ops.nf4.packed import Packed4bit


def quantised(rows: int, columns: int, block: int = 16) -> Packed4bit:
    """Return random codes with nested scales."""
    blocks = -(-rows * columns // block)
    return Packed4bit(
        packed=torch.randint(256, (-(-rows * columns // 2), 1), dtype=torch.uint8),
        absmax=torch.randint(256, (blocks,), dtype=torch.uint8),
        code=torch.linspace(-1, 1, 16),
        shape=(rows, columns),
        dtype=torch.bfloat16,
        block=block,
        nested_absmax=torch.rand(-(-blocks // 4)),
        nested_code=torch.linspace(-1, 1, 256),
        offset=torch.tensor(0.5),
        nested_block=4,
    )


def mixed(inputs: int, dtype: torch.dtype) -> list[Projection]:
    """Return five projections: with bias, with another rank, without adapter, in 4 bits, with a frozen adapter."""

    def drawn(*shape: int, trained: bool = False) -> torch.Tensor:
        return torch.randn(shape).to(dtype).requires_grad_(trained)

    def adapter(outputs: int, rank: int, trained: bool = True) -> dict[str, torch.Tensor]:
        return {"a": drawn(rank, inputs, trained=trained), "b": drawn(outputs, rank, trained=trained)}

    return [
        Projection(drawn(9, inputs), drawn(9), **adapter(9, 3), scaling=0.7),
        Projection(drawn(5, inputs), **adapter(5, 1), scaling=2.0),
        Projection(drawn(6, inputs), drawn(6)),
        Projection(quantised(7, inputs), **adapter(7, 2), scaling=-1.5),
        Projection(drawn(3, inputs), **adapter(3, 2, trained=False), scaling=0.5),
    ]


def numbers(weight: torch.Tensor | Packed4bit, dtype: torch.dtype) -> torch.Tensor:
    """Return a frozen weight as a plain tensor."""
    return weight.dequantise(dtype) if isinstance(weight, Packed4bit) else weight.to(dtype)


def unfused(x: torch.Tensor, projections: Sequence[Projection]) -> list[torch.Tensor]:
    """Return the projections as separate layers compute them."""
    found = []
    for each in projections:
        weight = numbers(each.weight, x.dtype)
        if each.a is None or each.b is None:
            found.append(torch.nn.functional.linear(x, weight, each.bias))
        else:
            found.append(lora_linear(x, weight, each.bias, each.a, each.b, each.scaling))
    return found


def exactly(each: Projection, keep: bool = False) -> Projection:
    """Return the projection in float64, with leaves of its own, or (`keep`) with gradients to the given ones."""

    def wide(part: torch.Tensor | None) -> torch.Tensor | None:
        if part is None or keep:
            return None if part is None else part.double()
        return part.detach().double().requires_grad_(part.requires_grad)

    return replace(
        each, weight=numbers(each.weight, torch.float64), bias=wide(each.bias), a=wide(each.a), b=wide(each.b)
    )


def trained_in(projections: Sequence[Projection]) -> list[torch.Tensor]:
    """Return every a and b that wants a gradient."""
    return [part for each in projections for part in (each.a, each.b) if part is not None and part.requires_grad]
