"""The kernel in Triton's interpreter: every bit as the reference has it."""

from __future__ import annotations

import pytest
import torch

from aitrain.ops.nf4 import reference
from aitrain.ops.nf4.op import nf4_dequantise

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITRAIN_OPS", "triton")
    torch.manual_seed(0)


def weight(count: int, block: int, nested: int = 0):
    """Arguments of the op behind shape and dtype; `nested` = codes per inner block, 0 = plain scales."""
    blocks = -(-count // block)
    packed = torch.randint(256, (-(-count // 2),), dtype=torch.uint8)
    if not nested:
        return packed, torch.rand(blocks) + 0.1, {"block": block}
    more = {"nested_absmax": torch.rand(-(-blocks // nested)), "nested_code": torch.randn(256).sort().values}
    more |= {"offset": torch.tensor(0.3), "nested_block": nested, "block": block}
    return packed, torch.randint(256, (blocks,), dtype=torch.uint8), more


def both(packed, absmax, more, shape, dtype, monkeypatch):
    found = nf4_dequantise(packed, absmax, shape, dtype, **more)
    with monkeypatch.context() as patch:
        patch.setenv("AITRAIN_OPS", "reference")
        return found, nf4_dequantise(packed, absmax, shape, dtype, **more)


SHAPES = [(1, 1), (3, 43), (8, 16), (100, 90), (1, 8193), (0, 8), (2, 0, 4), (5,)]


@pytest.mark.parametrize("nested", [0, 4, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_bit(shape, dtype, nested, monkeypatch):
    count = torch.Size(shape).numel()
    found, expected = both(*weight(count, 64, nested), shape, dtype, monkeypatch)
    assert found.dtype == dtype and torch.equal(found, expected)


@pytest.mark.parametrize("block", [2, 32, 256, 4096, 16384])
@pytest.mark.parametrize("nested", [0, 2])
def test_block_sizes(block, nested, monkeypatch):
    found, expected = both(*weight(3 * 4001, block, nested), (3, 4001), torch.float32, monkeypatch)
    assert torch.equal(found, expected)


def test_bfloat16_within_the_interpreters_truncation(monkeypatch):
    found, expected = both(*weight(500, 64, 2), (5, 100), torch.bfloat16, monkeypatch)
    # Triton's interpreter truncates when it stores bf16: one unit of 2**-8 instead of a half
    torch.testing.assert_close(found.float(), expected.float(), rtol=2**-7, atol=1e-6)


def test_other_codes_and_layouts(monkeypatch):
    packed, absmax, more = weight(300, 64)
    more["code"] = torch.tensor(reference.FP4)
    apart = torch.stack([packed, packed], 1)[:, 0]
    assert not apart.is_contiguous()
    found, expected = both(apart, absmax, more, (300,), torch.float32, monkeypatch)
    assert torch.equal(found, expected)
    halves = absmax.half()
    found, expected = both(packed, halves, more, (300,), torch.float32, monkeypatch)
    assert torch.equal(found, expected)


def test_float64_is_left_to_pytorch():
    packed, absmax, more = weight(10, 64)
    assert nf4_dequantise(packed, absmax, (10,), torch.float64, **more).dtype == torch.float64
