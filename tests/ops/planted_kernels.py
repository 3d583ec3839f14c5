"""Kernels with a fault that the ahead-of-time check must find, and one without."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def copy(source, target, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Copy: nothing is wrong with it."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    tl.store(target + at, tl.load(source + at, mask=inside), mask=inside)


@triton.jit
def hoard(source, target, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Hold four rows until their sums are known: more than the registers of one warp."""
    at = tl.arange(0, BLOCK)
    inside = at < size
    a = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + size + at, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(source + 2 * size + at, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(source + 3 * size + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.sum(a * b) * tl.sum(c * d)
    tl.store(target + at, (a * scale).to(tl.bfloat16), mask=inside)
    tl.store(target + size + at, (b * scale).to(tl.bfloat16), mask=inside)
    tl.store(target + 2 * size + at, (c * scale).to(tl.bfloat16), mask=inside)
    tl.store(target + 3 * size + at, (d * scale).to(tl.bfloat16), mask=inside)


@triton.jit
def unknown_word(source, target, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Use a function that does not exist."""
    at = tl.arange(0, BLOCK)
    tl.store(target + at, tl.no_such_function(tl.load(source + at)), mask=at < size)
