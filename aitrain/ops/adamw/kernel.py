"""Triton kernels of multi-tensor AdamW for NVIDIA and AMD, and their launchers."""

# A tile is (B, L, E): blocks of 256 elements x lanes of a warp x elements of a lane. One lane reads 8 neighbours, 16
# bytes in bf16 and twice 16 in fp32; one warp holds one block of 8-bit moments, so its scale costs no shared memory.

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl

from aitrain.ops.adamw.bucket import COEFFICIENTS, Bucket, Numbers
from aitrain.ops.adamw.codes import SIGNED, UNSIGNED, Code, value_table
from aitrain.ops.adamw.table import CHUNK, Table

WARPS = 4
_WARPS_HERE = WARPS // 2 if torch.version.hip else WARPS  # a warp of AMD has 64 threads: the same tile for each thread
PARTIALS = 1024
"""Sums that the norm leaves for the last reduction: a fixed number, so the norm is the same on every device."""

_CLIP = tl.constexpr(0)
_DECAY = tl.constexpr(1)
_STEP_SIZE = tl.constexpr(2)
_INVERSE_ROOT = tl.constexpr(3)
_STEP = tl.constexpr(4)
_NORM = tl.constexpr(5)


def _constants(code: Code) -> tl.constexpr:
    return tl.constexpr((*code.starts, code.first, float(code.zero), code.smallest, code.largest))


_SIGNED = _constants(SIGNED)
_UNSIGNED = _constants(UNSIGNED)
_SLOPES = tl.constexpr(SIGNED.slopes)


@triton.jit
def _encode(y, SIGN: tl.constexpr, CODE: tl.constexpr):
    FIRST: tl.constexpr = CODE[6]
    magnitude = tl.abs(y)
    slope = tl.full(y.shape, _SLOPES[0], tl.float32)
    count = tl.full(y.shape, 1.0, tl.float32)
    for i in tl.static_range(6):
        above = magnitude >= CODE[i]
        slope = tl.where(above, _SLOPES[i + 1], slope)
        count = tl.where(above, 2.0 ** (i + 1), count)
    # both codes share the constants, for the sake of AMD's scalar registers: without a sign everything is twice as fine
    index = tl.floor(FIRST * (magnitude * slope + count * (8 / 9)))
    index = tl.minimum(tl.maximum(index, FIRST * count), 2 * FIRST * count - 1)
    dead = magnitude < CODE[8] if SIGN else magnitude == 0
    offset = tl.where(dead, 0.0, index - (FIRST - 1))
    full = (magnitude >= CODE[9]) & (y >= 0)
    offset = tl.where(full, FIRST * 128 - (FIRST - 1.0), offset)
    return (CODE[7] + tl.where(y < 0, -offset, offset)).to(tl.int32).to(tl.uint8)


@triton.jit
def _bits(seed, counter, lane, step, STREAM: tl.constexpr):
    low = (counter & 0xFFFFFFFF).to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    a, b, c, d = tl.philox(
        seed, low, high, tl.zeros_like(low) + step.to(tl.uint32), tl.full(low.shape, STREAM, tl.uint32), n_rounds=7
    )
    # the lane's element is known at compile time on the wide path: then nothing of this selection is left
    word = tl.where(lane < 2, a, tl.where(lane < 4, b, tl.where(lane < 6, c, d)))
    return (word >> ((lane & 1) * 16).to(tl.uint32)) & 0xFFFF


@triton.jit
def _to_bf16(x, noise, STOCHASTIC: tl.constexpr):
    raw = x.to(tl.uint32, bitcast=True)
    # nearest, ties to even, is done by hand: Triton's interpreter truncates
    raw += noise if STOCHASTIC else 0x7FFF + ((raw >> 16) & 1)
    raw = tl.where(x != x, 0x7FC00000, raw)
    return (raw >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _store(pointer, x, mask, noise, BF16: tl.constexpr, STOCHASTIC: tl.constexpr):
    if BF16:
        tl.store(pointer, _to_bf16(x, noise, STOCHASTIC), mask=mask)
    else:
        tl.store(pointer, x, mask=mask)


@triton.jit
def _store_codes(codes, scales, x, mask, block_mask, SIGN: tl.constexpr, CODE: tl.constexpr):
    scale = tl.max(tl.max(tl.abs(x), 2), 1)
    tl.store(scales, scale, mask=block_mask)
    inverse = tl.where(scale > 0, tl.div_rn(1.0, tl.where(scale > 0, scale, 1.0)), 0.0)
    tl.store(codes, _encode(x * inverse[:, None, None], SIGN, CODE), mask=mask)


@triton.jit
def _pointer(row, COLUMN: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr, BYTES: tl.constexpr):
    pointer = tl.load(row + COLUMN).to(tl.pointer_type(TYPE))
    if WIDE:
        pointer = tl.multiple_of(pointer, BYTES)
    return pointer


@triton.jit
def _step(
    rows,
    chunks,
    coefficients,
    signed_values,
    unsigned_values,
    beta1,
    rest1,
    beta2,
    rest2,
    eps,
    seed,
    PARAM_BF16: tl.constexpr,
    GRAD_BF16: tl.constexpr,
    MOMENT: tl.constexpr,  # bits: 32, 16 or 8
    STOCHASTIC: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    entry = tl.load(chunks + tl.program_id(0).to(tl.int64))
    row = rows + (entry >> 32) * 8
    size = tl.load(row + 6)
    offset = tl.load(row + 7)
    P: tl.constexpr = tl.bfloat16 if PARAM_BF16 else tl.float32
    G: tl.constexpr = tl.bfloat16 if GRAD_BF16 else tl.float32
    M: tl.constexpr = tl.uint8 if MOMENT == 8 else (tl.bfloat16 if MOMENT == 16 else tl.float32)
    MOMENT_BYTES: tl.constexpr = 8 if MOMENT == 8 else 16
    param_at = _pointer(row, 0, P, WIDE, 16)
    grad_at = _pointer(row, 1, G, WIDE, 16)
    first_at = _pointer(row, 2, M, WIDE, MOMENT_BYTES)
    second_at = _pointer(row, 3, M, WIDE, MOMENT_BYTES)
    if MOMENT == 8:
        first_scale_at = _pointer(row, 4, tl.float32, False, 4)
        second_scale_at = _pointer(row, 5, tl.float32, False, 4)
    clip = tl.load(coefficients + _CLIP)
    decay = tl.load(coefficients + _DECAY)
    step_size = tl.load(coefficients + _STEP_SIZE)
    inverse_root = tl.load(coefficients + _INVERSE_ROOT)
    step = tl.load(coefficients + _STEP)

    block = tl.arange(0, BLOCKS)
    item = tl.arange(0, 8)[None, None, :]
    granules = block[:, None] * 256 + tl.arange(0, 32)[None, :] * 8
    for tile in range(CHUNK // (BLOCKS * 256)):
        at = (entry & 0xFFFFFFFF) * CHUNK + tile * (BLOCKS * 256)
        at = tl.multiple_of(at, 256)
        granule = at + granules
        element = granule[:, :, None] + item
        # wide sizes are whole granules: one comparison for 8 elements keeps the accesses wide
        mask = (granule < size)[:, :, None] if WIDE else element < size

        grad = tl.load(grad_at + element, mask=mask, other=0.0).to(tl.float32) * clip
        param = tl.load(param_at + element, mask=mask, other=0.0).to(tl.float32)
        if MOMENT == 8:
            block_mask = at + block * 256 < size
            first_scales = first_scale_at + (at // 256 + block)
            second_scales = second_scale_at + (at // 256 + block)
            first = tl.load(signed_values + tl.load(first_at + element, mask=mask, other=127).to(tl.int32))
            first *= tl.load(first_scales, mask=block_mask, other=0.0)[:, None, None]
            second = tl.load(unsigned_values + tl.load(second_at + element, mask=mask, other=0).to(tl.int32))
            second *= tl.load(second_scales, mask=block_mask, other=0.0)[:, None, None]
        else:
            first = tl.load(first_at + element, mask=mask, other=0.0).to(tl.float32)
            second = tl.load(second_at + element, mask=mask, other=0.0).to(tl.float32)

        first = first + rest1 * (grad - first)
        second = beta2 * second + rest2 * grad * grad
        update = first / (tl.sqrt(second) * inverse_root + eps)
        param = param * decay - step_size * update

        if WIDE:
            counter = ((offset + granule) >> 3)[:, :, None]
            lane = item
        else:
            counter = (offset + element) >> 3
            lane = ((offset + element) & 7).to(tl.int32)
        noise = tl.zeros((1, 1, 1), tl.uint32)
        if PARAM_BF16 and STOCHASTIC:
            noise = _bits(seed, counter, lane, step, 0)
        _store(param_at + element, param, mask, noise, PARAM_BF16, STOCHASTIC)
        if MOMENT == 8:
            _store_codes(first_at + element, first_scales, first, mask, block_mask, True, _SIGNED)
            _store_codes(second_at + element, second_scales, second, mask, block_mask, False, _UNSIGNED)
        else:
            first_noise = noise
            second_noise = noise
            if MOMENT == 16 and STOCHASTIC:
                first_noise = _bits(seed, counter, lane, step, 1)
                second_noise = _bits(seed, counter, lane, step, 2)
            _store(first_at + element, first, mask, first_noise, MOMENT == 16, STOCHASTIC)
            _store(second_at + element, second, mask, second_noise, MOMENT == 16, STOCHASTIC)


@triton.jit
def _squares(
    rows,
    chunks,
    partials,
    count,
    GRAD_BF16: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    G: tl.constexpr = tl.bfloat16 if GRAD_BF16 else tl.float32
    item = tl.arange(0, 8)[None, None, :]
    granules = tl.arange(0, BLOCKS)[:, None] * 256 + tl.arange(0, 32)[None, :] * 8
    total = tl.zeros((BLOCKS, 32, 8), tl.float32)
    index = tl.program_id(0).to(tl.int64)
    while index < count:
        entry = tl.load(chunks + index)
        row = rows + (entry >> 32) * 8
        size = tl.load(row + 6)
        grad_at = _pointer(row, 1, G, WIDE, 16)
        for tile in range(CHUNK // (BLOCKS * 256)):
            at = (entry & 0xFFFFFFFF) * CHUNK + tile * (BLOCKS * 256)
            granule = tl.multiple_of(at, 256) + granules
            element = granule[:, :, None] + item
            mask = (granule < size)[:, :, None] if WIDE else element < size
            grad = tl.load(grad_at + element, mask=mask, other=0.0).to(tl.float32)
            total += grad * grad
        index += tl.num_programs(0)
    tl.store(partials + tl.program_id(0), tl.sum(tl.sum(tl.sum(total, 2), 1), 0))


@triton.jit
def _prepare(
    squares,
    count,
    step,
    out,
    lr,
    log_beta1,
    log_beta2,
    decay,
    max_norm,
    CLIPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    total = tl.zeros((BLOCK,), tl.float64)
    start = 0
    while start < count:
        index = start + tl.arange(0, BLOCK)
        total += tl.load(squares + index, mask=index < count, other=0.0).to(tl.float64)
        start += BLOCK
    norm = tl.sqrt(tl.sum(total, 0))
    t = tl.load(step).to(tl.float64) + 1
    tl.store(step, t.to(tl.float32))
    # fp64: 1 - beta2**t is 1e-3 in the first step, fp32 would keep 4 digits of it
    rest1 = 1 - tl.exp(t * log_beta1)
    rest2 = 1 - tl.exp(t * log_beta2)
    clip = tl.full((), 1.0, tl.float64)
    if CLIPPED:
        wanted = max_norm / (norm + 1e-6)
        clip = tl.where(wanted > 1, 1.0, wanted)  # a comparison, so that NaN stays NaN
    tl.store(out + _CLIP, clip.to(tl.float32))
    tl.store(out + _DECAY, decay)
    tl.store(out + _STEP_SIZE, (lr / rest1).to(tl.float32))
    tl.store(out + _INVERSE_ROOT, (1 / tl.sqrt(rest2)).to(tl.float32))
    tl.store(out + _STEP, t.to(tl.float32))
    tl.store(out + _NORM, norm.to(tl.float32))


def _blocks(wide: bool) -> int:
    """Return the blocks of 256 elements of a tile: one where every element has an address of its own."""
    return WARPS if wide else 1


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Launch on the device of the tensors, which need not be the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        yield
    else:
        with torch.cuda.device(device):
            yield


def squared_norms(bucket: Bucket, table: Table) -> torch.Tensor:
    """Return fp32 partial sums of the squares of a bucket's gradients; the squared 2-norm is their sum.

    Args:
        bucket: Its gradients.
        table: Its addresses.

    Returns:
        Shape `(sums,)`; the same numbers in every run.
    """
    found = []
    for part, wide in table.parts():
        programs = min(len(part.chunks), PARTIALS)
        partials = torch.empty(programs, dtype=torch.float32, device=part.rows.device)
        with _on(part.rows.device):
            _squares[(programs,)](
                part.rows,
                part.chunks,
                partials,
                len(part.chunks),
                GRAD_BF16=bucket.grads[0].dtype == torch.bfloat16,
                WIDE=wide,
                CHUNK=CHUNK,
                BLOCKS=_blocks(wide),
                num_warps=_WARPS_HERE,
            )
        found.append(partials)
    return torch.cat(found) if found else torch.zeros(1, device=bucket.params[0].device)


def prepare(step: torch.Tensor, numbers: Numbers, squares: torch.Tensor | None) -> torch.Tensor:
    """Count the step and compute the coefficients on the device; as `reference.prepare`.

    Args:
        step: fp32, 0-dimensional; increased by one.
        numbers: Hyperparameters.
        squares: fp32 sums of squares; None = not measured.

    Returns:
        The coefficients, fp32.
    """
    out = torch.zeros(COEFFICIENTS, dtype=torch.float32, device=step.device)
    with _on(step.device):
        _prepare[(1,)](
            out if squares is None else squares,
            0 if squares is None else squares.numel(),
            step,
            out,
            float(numbers.lr),
            math.log(numbers.beta1) if numbers.beta1 > 0 else -math.inf,
            math.log(numbers.beta2) if numbers.beta2 > 0 else -math.inf,
            1.0 - numbers.lr * numbers.weight_decay,
            float(numbers.max_norm or 0.0),
            CLIPPED=numbers.max_norm is not None,
            BLOCK=1024,
            num_warps=_WARPS_HERE,
        )
    return out


def step(bucket: Bucket, table: Table, coefficients: torch.Tensor, numbers: Numbers) -> None:
    """Take one step on a bucket: one launch, and a second one where something is not aligned.

    Args:
        bucket: The tensors.
        table: Their addresses.
        coefficients: From `prepare`.
        numbers: Hyperparameters.
    """
    device = coefficients.device
    for part, wide in table.parts():
        with _on(device):
            _step[(len(part.chunks),)](
                part.rows,
                part.chunks,
                coefficients,
                value_table(True, device),
                value_table(False, device),
                numbers.beta1,
                1 - numbers.beta1,
                numbers.beta2,
                1 - numbers.beta2,
                numbers.eps,
                numbers.seed,
                PARAM_BF16=bucket.params[0].dtype == torch.bfloat16,
                GRAD_BF16=bucket.grads[0].dtype == torch.bfloat16,
                MOMENT=8 * bucket.exp_avgs[0].element_size(),
                STOCHASTIC=numbers.stochastic,
                WIDE=wide,
                CHUNK=CHUNK,
                BLOCKS=_blocks(wide),
                num_warps=_WARPS_HERE,
            )
