"""AdamW in plain PyTorch: what the kernels have to compute, and what runs on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from aitrain.ops.adamw.bucket import (
    CLIP,
    COEFFICIENTS,
    DECAY,
    INVERSE_ROOT,
    NORM,
    STEP,
    STEP_SIZE,
    Bucket,
    Numbers,
)
from aitrain.ops.adamw.codes import dequantise, quantise

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
ROUNDS = 7
"""Of Philox: with 7 it passes every test of BigCrush (its paper, table 2); 10 are the authors' margin."""

PARAM, FIRST, SECOND = range(3)
"""Streams of random bits: of the parameter, of the first and of the second moment."""


def squared_norms(grads: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of the squares of every gradient.

    Args:
        grads: fp32 or bf16, any shapes.

    Returns:
        fp32 of shape `(len(grads),)`; the squared 2-norm is its sum.
    """
    if not grads:
        return torch.zeros(0)
    wide = torch.float64 if grads[0].dtype == torch.float64 else torch.float32
    return torch.stack([torch.linalg.vector_norm(grad, dtype=wide) for grad in grads]).square()


def prepare(step: torch.Tensor, numbers: Numbers, squares: torch.Tensor | None) -> torch.Tensor:
    """Count the step and compute the numbers that all elements of a group share; no value leaves the device.

    Args:
        step: 0-dimensional, steps done before this one; increased by one.
        numbers: Hyperparameters.
        squares: fp32 sums of squares that make up the squared norm; None = not measured, then nothing is clipped.

    Returns:
        The coefficients, see `bucket.py`.
    """
    step += 1
    t = step.double()
    # fp64: 1 - beta2**t is 1e-3 in the first step, fp32 would keep 4 digits of it
    out = torch.zeros(COEFFICIENTS, dtype=torch.float64, device=step.device)
    norm = squares.double().sum().sqrt() if squares is not None else torch.zeros_like(t)
    out[NORM] = norm
    out[CLIP] = torch.clamp(numbers.max_norm / (norm + 1e-6), max=1.0) if numbers.max_norm is not None else 1.0
    out[DECAY] = 1.0 - numbers.lr * numbers.weight_decay
    out[STEP_SIZE] = numbers.lr / -torch.expm1(t * math.log(numbers.beta1)) if numbers.beta1 > 0 else numbers.lr
    out[INVERSE_ROOT] = torch.rsqrt(-torch.expm1(t * math.log(numbers.beta2))) if numbers.beta2 > 0 else 1.0
    out[STEP] = t
    return out if step.dtype == torch.float64 else out.float()


def step(bucket: Bucket, coefficients: torch.Tensor, numbers: Numbers) -> None:
    """Take one step on every tensor of a bucket, in place.

    With `g' = clip g`: `m = m + (1 - beta1) (g' - m)`, `v = beta2 v + (1 - beta2) g'^2`,
    `p = decay p - step_size m / (sqrt(v) inverse_root + eps)`, all in fp32 (fp64 where the parameters are), then
    rounded once to the types of the storage.

    Args:
        bucket: The tensors.
        coefficients: From `prepare`.
        numbers: Hyperparameters; those that `coefficients` holds are taken from there.

    Source: Loshchilov and Hutter, arXiv:1711.05101, algorithm 2; 8-bit moments: Dettmers et al., arXiv:2110.02861.
    """
    for i, param in enumerate(bucket.params):
        wide = torch.float64 if param.dtype == torch.float64 else torch.float32
        c = coefficients.to(wide)
        grad = bucket.grads[i].to(wide) * c[CLIP]
        first, second = _moments(bucket, i, wide)
        first = first + (1 - numbers.beta1) * (grad - first)
        second = numbers.beta2 * second + (1 - numbers.beta2) * grad * grad
        update = first / (second.sqrt() * c[INVERSE_ROOT] + numbers.eps)
        value = param.to(wide) * c[DECAY] - c[STEP_SIZE] * update
        key = _Key(numbers, coefficients, bucket.offsets[i])
        _store(param, value, key, PARAM)
        if bucket.quantised:
            for x, codes, scales, signed in (
                (first, bucket.exp_avgs[i], bucket.exp_avg_scales[i], True),
                (second, bucket.exp_avg_sqs[i], bucket.exp_avg_sq_scales[i], False),
            ):
                new_codes, new_scales = quantise(x, signed)
                codes.copy_(new_codes)
                scales.copy_(new_scales)
        else:
            _store(bucket.exp_avgs[i], first, key, FIRST)
            _store(bucket.exp_avg_sqs[i], second, key, SECOND)


def _moments(bucket: Bucket, i: int, wide: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    if bucket.quantised:
        return (
            dequantise(bucket.exp_avgs[i], bucket.exp_avg_scales[i], signed=True),
            dequantise(bucket.exp_avg_sqs[i], bucket.exp_avg_sq_scales[i], signed=False),
        )
    return bucket.exp_avgs[i].to(wide), bucket.exp_avg_sqs[i].to(wide)


class _Key:
    """What makes the random bits of a tensor in a step."""

    def __init__(self, numbers: Numbers, coefficients: torch.Tensor, offset: int) -> None:
        self.stochastic = numbers.stochastic
        self.seed = numbers.seed
        self.step = coefficients[STEP].long()
        self.offset = offset


def _store(target: torch.Tensor, value: torch.Tensor, key: _Key, stream: int) -> None:
    if target.dtype != torch.bfloat16 or not key.stochastic:
        target.copy_(value)
        return
    elements = key.offset + torch.arange(value.numel(), device=value.device)
    target.copy_(round_stochastic(value, random_bits(elements, key.step, stream, key.seed).view(value.shape)))


def round_stochastic(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Round fp32 to bf16, up in magnitude with the probability of the remainder: right on average.

    Args:
        x: fp32.
        bits: int64 of the shape of `x`, uniform in [0, 65536).

    Returns:
        bf16 of the shape of `x`; NaN stays NaN, infinities stay.
    """
    raw = x.contiguous().view(torch.int32).long() & _WORD
    up = ((raw + bits) & 0xFFFF0000) >> 16
    # adding to a NaN with a full fraction, which is the GPU's own, would carry into the sign and make a zero of it
    up = torch.where(torch.isnan(x), torch.full_like(up, 0x7FC0), up)
    return torch.where(up >= 0x8000, up - 0x10000, up).to(torch.int16).view(torch.bfloat16)


def random_bits(elements: torch.Tensor, step: torch.Tensor, stream: int, seed: int) -> torch.Tensor:
    """Return 16 random bits per element: one draw of Philox serves 8 neighbours.

    Args:
        elements: int64, numbers of the elements.
        step: int64, 0-dimensional.
        stream: `PARAM`, `FIRST` or `SECOND`.
        seed: Key, up to 63 bits.

    Returns:
        int64 of the shape of `elements`, in [0, 65536).
    """
    granule = elements >> 3
    counter = [granule & _WORD, (granule >> 32) & _WORD, (step & _WORD).expand_as(granule)]
    counter.append(torch.full_like(granule, stream))
    words = torch.stack(philox(counter, seed), -1)
    lane = elements & 7
    word = words.gather(-1, (lane >> 1)[..., None])[..., 0]
    return (word >> (16 * (lane & 1))) & 0xFFFF


def philox(counter: Sequence[torch.Tensor], seed: int) -> list[torch.Tensor]:
    """Return the four words of Philox4x32-7.

    Args:
        counter: Four int64 tensors in [0, 2**32).
        seed: 64-bit key.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(ROUNDS):
        # 64-bit products wrap as signed numbers, their bits are right: so the shift is masked
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((b >> 32) & _WORD) ^ c1 ^ k0, ((a >> 32) & _WORD) ^ c3 ^ k1
        c1, c3 = b & _WORD, a & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return [c0, c1, c2, c3]
