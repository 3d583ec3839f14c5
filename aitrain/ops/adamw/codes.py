"""The 8-bit code of the moments: 256 values per sign rule, dense near the largest magnitude of a block of 256."""

# A code is a small floating-point number whose exponent counts decades and whose mantissa is linear. With
# j = |code - zero| + first (first = 1 with a sign, 2 without) and j + 1/2 = 2**i * mantissa, mantissa in [1, 2):
#     value = 10**(i - top) * (0.9 * mantissa - 0.8)
# which are the dynamic maps of bitsandbytes, apart from the last bit of a few values.

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

BLOCK = 256
"""Consecutive elements that share one scale, the largest magnitude among them."""

DECADES = 7


@dataclass(frozen=True)
class Code:
    """How a magnitude in [0, 1] becomes an index, and what the index means.

    Attributes:
        signed: Whether half of the codes are negative (first moment) or none (second moment).
        values: The 256 values in ascending order, in fp32.
        zero: Code of the value 0.
        first: Index of the smallest magnitude above zero, counted so that decade `i` begins at `first * 2**i`.
        smallest: Magnitudes below this are zero. Without a sign it is 0: a second moment that became zero would divide
            the update by epsilon.
        largest: Magnitudes from here on are one.
        starts: Magnitude where each decade after the first begins.
        slopes: Indices per unit of magnitude, per decade.
    """

    signed: bool
    values: tuple[float, ...]
    zero: int
    first: int
    smallest: float
    largest: float
    starts: tuple[float, ...]
    slopes: tuple[float, ...]


def _fp32(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float32))


def _make(signed: bool) -> Code:
    first = 1 if signed else 2
    counts = [first * 2**i for i in range(DECADES)]
    scales = [10.0 ** (i - DECADES + 1) for i in range(DECADES)]
    magnitudes = [
        scale * (0.1 + 0.9 * (k + 0.5) / count)
        for count, scale in zip(counts, scales, strict=True)
        for k in range(count)
    ]
    values = sorted(([-x for x in magnitudes] if signed else []) + [0.0, *magnitudes, 1.0])
    # the threshold between two decades lies halfway between their neighbouring values, as everywhere else
    starts = tuple(_fp32((magnitudes[count - first - 1] + magnitudes[count - first]) / 2) for count in counts[1:])
    return Code(
        signed=signed,
        values=tuple(_fp32(x) for x in values),
        zero=values.index(0.0),
        first=first,
        smallest=_fp32(magnitudes[0] / 2) if signed else 0.0,
        largest=_fp32((magnitudes[-1] + 1) / 2),
        starts=starts,
        slopes=tuple(_fp32(count / (0.9 * scale)) for count, scale in zip(counts, scales, strict=True)),
    )


SIGNED = _make(signed=True)
"""For the first moment. Source: Dettmers et al., arXiv:2110.02861, section 2.1 (dynamic tree quantisation)."""

UNSIGNED = _make(signed=False)
"""For the second moment: the bit of the sign makes the fraction finer."""


@cache
def value_table(signed: bool, device: torch.device) -> torch.Tensor:
    """Return the 256 values on a device.

    Args:
        signed: Which of the two codes.
        device: Where the table is used; one copy per device is kept.
    """
    return torch.tensor((SIGNED if signed else UNSIGNED).values, dtype=torch.float32, device=device)


def blocks_of(size: int) -> int:
    """Return the number of scales of a tensor.

    Args:
        size: Its elements.
    """
    return -(-size // BLOCK)


def quantise(x: torch.Tensor, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Round every element to the nearest value of the code, block by block.

    A positive second moment never becomes zero.

    Args:
        x: fp32, any shape; blocks run over it in row order.
        signed: Which of the two codes.

    Returns:
        Codes (uint8, the shape of `x`) and scales (fp32, one per block).
    """
    code = SIGNED if signed else UNSIGNED
    flat = torch.nn.functional.pad(x.detach().float().reshape(-1), (0, -x.numel() % BLOCK)).view(-1, BLOCK)
    scales = flat.abs().amax(1)
    inverse = torch.where(scales > 0, 1 / scales, 0)
    y = flat * inverse[:, None]
    return encode(y, code).view(-1)[: x.numel()].view(x.shape), scales


def encode(y: torch.Tensor, code: Code) -> torch.Tensor:
    """Return the codes of fractions of a block's largest magnitude.

    Args:
        y: fp32 in [-1, 1].
        code: Which of the two codes.
    """
    magnitude = y.abs()
    slope = torch.full_like(y, code.slopes[0])
    count = torch.full_like(y, float(code.first))
    for start, steeper in zip(code.starts, code.slopes[1:], strict=True):
        above = magnitude >= start
        slope = torch.where(above, steeper, slope)
        count = torch.where(above, 2 * count, count)
    # 0.1 and 0.9 of a decade are its ends, so index = count * (1 + (m - 0.1) / 0.9) = slope * m + 8 / 9 * count
    index = torch.floor(magnitude * slope + count * (8 / 9))
    index = torch.minimum(torch.maximum(index, count), 2 * count - 1)
    dead = magnitude < code.smallest if code.signed else magnitude == 0
    index = torch.where(dead, float(code.first - 1), index)
    negative = y < 0
    full = (magnitude >= code.largest) & ~negative
    index = torch.where(full, float(code.first << DECADES), index)
    offset = index - (code.first - 1)
    return (code.zero + torch.where(negative, -offset, offset)).to(torch.uint8)


def dequantise(codes: torch.Tensor, scales: torch.Tensor, signed: bool) -> torch.Tensor:
    """Return the values that codes stand for.

    Args:
        codes: uint8, any shape.
        scales: fp32, one per block of `codes` in row order.
        signed: Which of the two codes.

    Returns:
        fp32 of the shape of `codes`.
    """
    values = value_table(signed, codes.device)[codes.reshape(-1).long()]
    return (values * scales.repeat_interleave(BLOCK)[: values.numel()]).view(codes.shape)
