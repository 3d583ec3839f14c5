"""Weights of bitsandbytes: read by their attributes, and every bit of what they stand for."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from aitrain.ops.nf4.packed import Packed4bit
from ops.nf4.from_bitsandbytes import FILE, WISHES, ask, stored


@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_every_bit_as_bitsandbytes_said(kernels, monkeypatch):
    if kernels == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("AITRAIN_OPS", kernels)
    found = list(stored())
    assert len(found) == len(WISHES)
    for weight, answer in found:
        held = Packed4bit.of(weight)
        assert held is not None and held.dtype == answer.dtype and held.shape == answer.shape
        dtype = torch.float32 if kernels == "triton" else answer.dtype
        # to float32 first: Triton's interpreter truncates when it stores bf16, a GPU does not
        assert torch.equal(held.dequantise(dtype).to(answer.dtype), answer)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_every_bit_as_bitsandbytes_says():
    for seed, wish in enumerate(WISHES):
        weight, answer = ask(wish, seed + 100)
        held = Packed4bit.of(weight)
        assert held is not None and type(held.packed) is torch.Tensor
        assert torch.equal(held.dequantise(), answer)


def test_the_type_can_be_another():
    weight, answer = next(stored())
    held = Packed4bit.of(weight)
    assert held is not None
    wide = held.dequantise(torch.float32)
    assert wide.dtype == torch.float32 and torch.equal(wide.to(answer.dtype), answer)


def test_storage_in_another_type_is_the_same_bytes():
    weight, answer = next(stored())
    other = torch.nn.Parameter(weight.detach().reshape(-1).view(torch.bfloat16), requires_grad=False)
    other.quant_state = weight.quant_state
    held = Packed4bit.of(other)
    assert held is not None and torch.equal(held.dequantise(), answer)


def test_what_is_no_4_bit_weight():
    assert Packed4bit.of(torch.nn.Parameter(torch.randn(3, 3))) is None
    weight, _ = next(stored())
    weight.quant_state.packing_format_for_cpu = True
    assert Packed4bit.of(weight) is None
    weight.quant_state.packing_format_for_cpu = False
    weight.quant_state.quant_type = "int4"
    assert Packed4bit.of(weight) is None
    weight.quant_state = None
    assert Packed4bit.of(weight) is None


def test_the_file_is_small():
    assert FILE.stat().st_size < 50_000
