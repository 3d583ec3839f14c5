"""A bucket refuses what no kernel handles, and says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aitrain.errors import ShapeError
from aitrain.ops.adamw.bucket import Bucket
from ops.adamw.buckets import KINDS, make_bucket, written


def bad(bucket: Bucket, column: str, tensor: torch.Tensor) -> Bucket:
    entries = list(getattr(bucket, column))
    entries[0] = tensor
    return replace(bucket, **{column: entries})


@pytest.mark.parametrize("kind", KINDS)
def test_good_ones_pass(kind: str) -> None:
    make_bucket(kind).check()


@pytest.mark.parametrize(
    ("column", "tensor", "said"),
    [
        ("params", torch.zeros(3, 200, dtype=torch.float16), "float16"),
        ("grads", torch.zeros(600), r"\(600,\) for a parameter of \(3, 200\)"),
        ("grads", torch.zeros(200, 3).T, "contiguous"),
        ("exp_avgs", torch.zeros(3, 200, dtype=torch.uint8), "uint8"),
        ("exp_avg_sqs", torch.zeros(3, 200, device="meta"), "device"),
    ],
)
def test_faults(column: str, tensor: torch.Tensor, said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        bad(make_bucket("fp32"), column, tensor).check()


def test_one_scale_per_block() -> None:
    with pytest.raises(ShapeError, match=r"\(3,\), one per 256"):
        bad(make_bucket("bf16, 8-bit moments"), "exp_avg_scales", torch.zeros(2)).check()


def test_lengths() -> None:
    bucket = make_bucket("fp32")
    with pytest.raises(ShapeError, match="4 parameters need as many"):
        replace(bucket, grads=bucket.grads[1:]).check()


@pytest.mark.parametrize(
    ("kind", "bytes_each"),
    [("fp32", 16), ("bf16, fp32 moments", 12), ("bf16, bf16 moments", 8), ("bf16, 8-bit moments", 6.03125)],
)
def test_bytes_per_parameter(kind: str, bytes_each: float) -> None:
    """8 bits: 2 (parameter) + 2 (gradient) + 1 + 1 (moments) + 2 * 4 / 256 (scales) = 6.03."""
    bucket = make_bucket(kind, [(64, 256)])
    tensors = [*written(bucket), *bucket.grads]
    assert sum(x.numel() * x.element_size() for x in tensors) == bytes_each * 64 * 256
