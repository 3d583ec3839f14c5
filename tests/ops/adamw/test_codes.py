"""The 8-bit codes: the published map, nearest values, exact round trips, blocks that do not touch each other."""

from __future__ import annotations

import pytest
import torch

from aitrain.ops.adamw.codes import BLOCK, SIGNED, UNSIGNED, Code, blocks_of, dequantise, encode, quantise

BOTH = pytest.mark.parametrize("code", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])


def published_map(signed: bool) -> torch.Tensor:
    """Return the dynamic map as the paper builds it: midpoints of equal intervals in [0.1, 1], per decade."""
    found = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1, dtype=torch.float64)
        middles = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)).tolist()
        found += middles + ([-x for x in middles] if signed else [])
    return torch.tensor(sorted(found), dtype=torch.float64)


def all_bf16(code: Code) -> torch.Tensor:
    """Return every bf16 number in [-1, 1], or in [0, 1]."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    return every[(every.abs() <= 1) & ((every >= 0) | code.signed)]


@BOTH
def test_values_are_the_published_map(code: Code) -> None:
    values, expected = torch.tensor(code.values), published_map(code.signed)
    assert len(values.unique()) == 256
    torch.testing.assert_close(values.double(), expected, rtol=2**-24, atol=0)


@BOTH
def test_every_bf16_number_goes_to_the_nearest_value(code: Code) -> None:
    x = all_bf16(code)
    values = torch.tensor(code.values, dtype=torch.float64)
    distance = (x.double()[:, None] - values).abs()
    error = distance.gather(1, encode(x, code).long()[:, None])[:, 0]
    # the border between two values is computed in fp32: it may lie 2^-16 of a cell away from the middle
    slack = distance.min(1).values * (1 + 2**-14)
    lifted = (not code.signed) & (x > 0) & (x < code.values[1])
    assert (error[~lifted] <= slack[~lifted]).all()
    assert (encode(x, code)[lifted] == 1).all(), "a second moment that becomes zero divides the update by epsilon"


@BOTH
@pytest.mark.parametrize("scale", [1.0, 3.7e-9, 1.9e12])
def test_all_256_codes_come_back(code: Code, scale: float) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    scales = torch.tensor([scale])
    again, new_scales = quantise(dequantise(codes, scales, code.signed), code.signed)
    assert torch.equal(again, codes)
    assert torch.equal(new_scales, scales), "the value 1.0 stands for the block's largest magnitude itself"


@BOTH
def test_blocks_keep_their_own_scale(code: Code) -> None:
    x = torch.rand(2, 400, generator=torch.Generator(torch.get_default_device()).manual_seed(0)) + 0.5
    x.view(-1)[:BLOCK] *= 1e6
    codes, scales = quantise(x, code.signed)
    assert codes.shape == x.shape
    assert scales.shape == (blocks_of(800),) == (4,)
    assert torch.equal(scales, torch.stack([part.max() for part in x.view(-1).split(BLOCK)]))
    # cells of the largest decade are 0.9/64 or 0.9/128 of the scale wide; half of one is the largest error
    half = 0.45 / (64 if code.signed else 128)
    error = (dequantise(codes, scales, code.signed) - x).abs().view(-1)
    assert (error <= 1.001 * half * scales.repeat_interleave(BLOCK)[:800]).all()


@BOTH
def test_nothing_but_zeros(code: Code) -> None:
    codes, scales = quantise(torch.zeros(300), code.signed)
    assert torch.equal(codes, torch.full((300,), code.zero, dtype=torch.uint8))
    assert torch.equal(dequantise(codes, scales, code.signed), torch.zeros(300))


def test_a_number_that_is_none_stays_visible() -> None:
    codes, scales = quantise(torch.tensor([1.0, float("nan")]), signed=True)
    assert dequantise(codes, scales, signed=True).isnan().any()
