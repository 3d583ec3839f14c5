"""The meaning of 4-bit weights in plain PyTorch: what the kernel must equal bit by bit, and the CPU path."""

from __future__ import annotations

from math import prod

import torch

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
    *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Quantiles of the normal distribution. Source: Dettmers et al., arXiv:2305.14314, appendix E."""

_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
FP4 = tuple(sign * size / 12.0 for sign in (1.0, -1.0) for size in _TWELFTHS)
"""A sign, two bits of exponent, one of mantissa."""

CODES = {"nf4": NF4, "fp4": FP4}


def scales(
    absmax: torch.Tensor,
    nested_absmax: torch.Tensor | None,
    nested_code: torch.Tensor | None,
    offset: torch.Tensor | None,
    nested_block: int,
) -> torch.Tensor:
    """Return the largest magnitude of every block, decoded where it is itself held in 8 bits.

    Args:
        absmax: Shape (blocks,): floats, or uint8 codes.
        nested_absmax: The largest magnitude of each block of codes; None = nothing is nested.
        nested_code: Shape (256,): what the codes stand for.
        offset: One number, added last.
        nested_block: Codes that share an entry of `nested_absmax`.
    """
    flat = absmax.reshape(-1)
    if nested_absmax is None:
        return flat.float()
    assert nested_code is not None and offset is not None
    of_each = nested_absmax.float().repeat_interleave(nested_block)[: len(flat)]
    return nested_code.float().index_select(0, flat.int()) * of_each + offset.float()


def dequantise(
    packed: torch.Tensor,
    code: torch.Tensor,
    of_blocks: torch.Tensor,
    block: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return `code[nibble] * scale`, multiplied in float32 and rounded once.

    Args:
        packed: uint8, two codes a byte, the first one in the high half.
        code: Shape (16,).
        of_blocks: Float32 scale of each block.
        block: Numbers per block.
        shape: Of the result.
        dtype: Of the result.
    """
    count = prod(shape)
    # a byte stands for a pair: one look-up instead of two
    pairs = torch.stack([code.float().repeat_interleave(16), code.float().repeat(16)], dim=1)
    values = pairs.index_select(0, packed.reshape(-1).int()).view(-1)[:count]
    whole = count // block
    values[: whole * block].view(whole, block).mul_(of_blocks[:whole, None])
    if count % block:
        values[whole * block :].mul_(of_blocks[whole])
    return values.to(dtype).view(shape)
