"""Triton kernel of the 4-bit weights: half a byte in, one number out, the scales decoded on the way."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from aitrain.ops.launching import warps

PROGRAM = 8192
"""Numbers of one program: with 8 warps, 16 packed bytes per thread."""


@triton.jit
def _dequantise(
    packed_ptr,
    out_ptr,
    code_ptr,
    absmax_ptr,
    nested_absmax_ptr,
    nested_code_ptr,
    offset_ptr,
    count,
    size,
    blocks,
    HALF: tl.constexpr,
    GROUP: tl.constexpr,
    NESTED: tl.constexpr,
    NESTED_BLOCK: tl.constexpr,
):
    """Decode GROUP blocks of 2 HALF numbers; `size` bytes hold `count` numbers."""
    block = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    alive = block < blocks
    if NESTED:
        codes = tl.load(absmax_ptr + block, mask=alive, other=0).to(tl.int32)
        of_codes = tl.load(nested_absmax_ptr + block // NESTED_BLOCK, mask=alive, other=0.0)
        # rounded twice, as bitsandbytes does it: the launch forbids a fused multiply-add
        scale = tl.load(nested_code_ptr + codes) * of_codes + tl.load(offset_ptr)
    else:
        scale = tl.load(absmax_ptr + block, mask=alive, other=0.0)
    place = block[:, None] * HALF + tl.arange(0, HALF)[None, :]
    byte = tl.load(packed_ptr + place, mask=place < size, other=0).to(tl.int32)
    element = out_ptr.dtype.element_ty
    first = (tl.load(code_ptr + (byte >> 4)) * scale[:, None]).to(element)
    second = (tl.load(code_ptr + (byte & 15)) * scale[:, None]).to(element)
    spot = block[:, None] * (2 * HALF) + tl.arange(0, 2 * HALF)[None, :]
    tl.store(out_ptr + spot, tl.interleave(first, second), mask=spot < count)


def group(block: int) -> int:
    """Return the blocks of one program.

    Args:
        block: Numbers per block, a power of two.
    """
    return max(1, PROGRAM // block)


def dequantise(
    packed: torch.Tensor,
    code: torch.Tensor,
    absmax: torch.Tensor,
    nested_absmax: torch.Tensor | None,
    nested_code: torch.Tensor | None,
    offset: torch.Tensor | None,
    block: int,
    nested_block: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Launch the kernel.

    Args:
        packed: uint8, contiguous.
        code: Shape (16,), float32, contiguous.
        absmax: As in `reference.scales`; float32 or uint8, contiguous.
        nested_absmax: As there; float32, contiguous.
        nested_code: As there; likewise.
        offset: As there; float32.
        block: Numbers per block, a power of two.
        nested_block: As there.
        shape: Of the result.
        dtype: Of the result.
    """
    out = torch.empty(shape, dtype=dtype, device=packed.device)
    count = out.numel()
    if count == 0:
        return out
    blocks = triton.cdiv(count, block)
    with torch.cuda.device_of(out):
        _dequantise[(triton.cdiv(blocks, group(block)),)](
            packed,
            out,
            code,
            absmax,
            nested_absmax,
            nested_code,
            offset,
            count,
            triton.cdiv(count, 2),
            blocks,
            HALF=block // 2,
            GROUP=group(block),
            NESTED=nested_absmax is not None,
            NESTED_BLOCK=nested_block,
            num_warps=warps(8),
            enable_fp_fusion=False,
        )
    return out
