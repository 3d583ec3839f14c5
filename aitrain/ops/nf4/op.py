"""Weights in 4 bits, turned back into numbers: the public function, and what the compiler knows of it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from aitrain.errors import ShapeError
from aitrain.ops.backend import use_kernels
from aitrain.ops.nf4 import reference
from aitrain.ops.registration import register

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def nf4_dequantise(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype = torch.bfloat16,
    block: int = 64,
    code: torch.Tensor | None = None,
    nested_absmax: torch.Tensor | None = None,
    nested_code: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    nested_block: int = 256,
) -> torch.Tensor:
    """Return the numbers that 4-bit codes stand for: `code[nibble] * absmax[i // block]`, bitsandbytes' layout.

    Multiplied in float32 and rounded once, as bitsandbytes does it, so that every bit is the same. One launch, nested
    scales included. Not differentiable: such weights are frozen. `Packed4bit.of(weight)` finds the arguments in a
    weight of bitsandbytes.

    Args:
        packed: uint8, any shape: two codes a byte in row-major order, the first one in the high half.
        absmax: Shape (blocks,): the largest magnitude of each block; uint8 codes where scales are nested.
        shape: Of the result.
        dtype: Of the result: bfloat16, float16, float32, and float64 (in plain PyTorch).
        block: Numbers per block, a power of two.
        code: Shape (16,): what the codes stand for; None = NF4.
        nested_absmax: Nested scales only, like the three that follow: the largest magnitude of each block of codes.
        nested_code: Shape (256,): what the codes of `absmax` stand for.
        offset: One number, added to every decoded scale.
        nested_block: Codes per block.

    Returns:
        The numbers, contiguous.

    Raises:
        ShapeError: Sizes or types do not fit each other.

    Source:
        Dettmers et al., arXiv:2305.14314, section 3.
    """
    if code is None:
        code = torch.tensor(reference.NF4, dtype=torch.float32, device=packed.device)
    sizes = [int(size) for size in shape]
    _check(packed, absmax, sizes, block, code, (nested_absmax, nested_code, offset), nested_block)
    given = (packed, code, absmax, nested_absmax, nested_code, offset, block, nested_block, sizes, dtype)
    if torch.compiler.is_compiling() or type(packed) is not torch.Tensor:
        found: torch.Tensor = _REGISTERED(*given)
        return found
    with torch.no_grad():
        return run(*given)


def _check(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    shape: list[int],
    block: int,
    code: torch.Tensor,
    nested: tuple[torch.Tensor | None, ...],
    nested_block: int,
) -> None:
    count = prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != -(-count // 2):
        raise ShapeError(
            f"packed {tuple(packed.shape)} {packed.dtype} for {tuple(shape)}: it must be {-(-count // 2)} bytes (uint8)"
        )
    for name, size in (("block", block), ("nested_block", nested_block)):
        if size < 2 or size & (size - 1):
            raise ShapeError(f"{name}={size} must be a power of two, 2 or more")
    if code.numel() != 16:
        raise ShapeError(f"code {tuple(code.shape)} must hold 16 numbers")
    if absmax.numel() != -(-count // block):
        raise ShapeError(
            f"absmax {tuple(absmax.shape)} must hold {-(-count // block)} numbers, one for {block} weights"
        )
    if len({part is None for part in nested}) != 1:
        raise ShapeError("nested_absmax, nested_code and offset go together: give all three or none")
    if (absmax.dtype == torch.uint8) != (nested[0] is not None):
        raise ShapeError(f"absmax is {absmax.dtype}: uint8 with nested_absmax, nested_code and offset, else floats")
    if nested[0] is not None and nested[0].numel() != -(-absmax.numel() // nested_block):
        raise ShapeError(
            f"nested_absmax {tuple(nested[0].shape)} must hold {-(-absmax.numel() // nested_block)} numbers"
        )


def run(
    packed: torch.Tensor,
    code: torch.Tensor,
    absmax: torch.Tensor,
    nested_absmax: torch.Tensor | None,
    nested_code: torch.Tensor | None,
    offset: torch.Tensor | None,
    block: int,
    nested_block: int,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Dequantise without a check and without autograd: for ops that hold such weights, inside their own passes.

    Args:
        packed: As in `nf4_dequantise`, like all others.
        code: Shape (16,).
        absmax: Floats, or uint8.
        nested_absmax: Or None.
        nested_code: Or None.
        offset: Or None.
        block: A power of two.
        nested_block: A power of two.
        shape: Of the result.
        dtype: Of the result.
    """
    size = tuple(shape)
    if dtype not in FLOATS or not use_kernels(packed):
        of_blocks = reference.scales(absmax, nested_absmax, nested_code, offset, nested_block)
        return reference.dequantise(packed, code, of_blocks, block, size, dtype)
    from aitrain.ops.nf4 import kernel

    wide = (nested_absmax, nested_code, offset)
    inner, table, added = (None if part is None else part.float().contiguous() for part in wide)
    outer = absmax if absmax.dtype == torch.uint8 else absmax.float()
    flat, codes = packed.contiguous(), code.float().contiguous()
    return kernel.dequantise(flat, codes, outer.contiguous(), inner, table, added, block, nested_block, size, dtype)


def _fake(packed: torch.Tensor, *rest: object) -> torch.Tensor:
    return packed.new_empty(rest[7], dtype=rest[8])  # type: ignore[call-overload, no-any-return]


_REGISTERED = register(
    "nf4_dequantise(Tensor packed, Tensor code, Tensor absmax, Tensor? nested_absmax, Tensor? nested_code, "
    "Tensor? offset, int block, int nested_block, SymInt[] shape, ScalarType dtype) -> Tensor",
    run,
    _fake,
)
