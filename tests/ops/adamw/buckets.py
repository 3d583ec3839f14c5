"""Buckets for the tests: random tensors of every kind, copied so that two implementations start alike."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from aitrain.ops.adamw.bucket import GRANULE, Bucket
from aitrain.ops.adamw.codes import quantise

FP32, BF16, UINT8 = torch.float32, torch.bfloat16, torch.uint8
KINDS = {
    "fp32": (FP32, FP32, FP32),
    "bf16, fp32 moments": (BF16, BF16, FP32),
    "bf16, bf16 moments": (BF16, BF16, BF16),
    "bf16, 8-bit moments": (BF16, BF16, UINT8),
    "fp32, 8-bit moments": (FP32, BF16, UINT8),
}
"""Types of parameters, gradients and moments."""

SHAPES = [(3, 200), (17,), (256 + 16,), (0,)]
"""Whole granules and not, one block and several, nothing at all."""


def make_bucket(kind: str, shapes: Sequence[tuple[int, ...]] = SHAPES, seed: int = 0) -> Bucket:
    """Return a bucket in the middle of a training: moments are not zero."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    of_params, of_grads, of_moments = KINDS[kind]

    def draw(scale: float, dtype: torch.dtype) -> list[torch.Tensor]:
        return [(torch.randn(shape, generator=generator) * scale).to(dtype) for shape in shapes]

    params, grads, first = draw(1, of_params), draw(1, of_grads), draw(0.1, FP32)
    second = [x.square() for x in draw(0.1, FP32)]
    offsets, begin = [], 0
    for param in params:
        offsets.append(begin)
        begin += -(-param.numel() // GRANULE) * GRANULE
    if of_moments is not UINT8:
        to = [[x.to(of_moments) for x in xs] for xs in (first, second)]
        return Bucket(params, grads, to[0], to[1], offsets=offsets)
    coded = [[quantise(x, signed) for x in xs] for xs, signed in ((first, True), (second, False))]
    codes, scales = ([[pair[i] for pair in pairs] for pairs in coded] for i in (0, 1))
    return Bucket(params, grads, codes[0], codes[1], scales[0], scales[1], offsets)


def twin(bucket: Bucket) -> Bucket:
    """Return a copy with its own memory."""
    return copy.deepcopy(bucket)


def written(bucket: Bucket) -> list[torch.Tensor]:
    """Return every tensor that a step writes."""
    lists = (bucket.params, bucket.exp_avgs, bucket.exp_avg_sqs, bucket.exp_avg_scales, bucket.exp_avg_sq_scales)
    return [tensor for tensors in lists for tensor in tensors]
