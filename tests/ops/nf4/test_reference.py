"""The definition, against bit patterns decoded by hand, and against bitsandbytes' own tables."""

from __future__ import annotations

import math

import pytest
import torch

from aitrain.ops.nf4 import reference


def by_hand(packed, code, scale, block, count):
    """Number by number, in Python."""
    nibbles = [half for byte in packed.tolist() for half in (byte // 16, byte % 16)][:count]
    return torch.tensor([code[nibble] * scale[at // block] for at, nibble in enumerate(nibbles)], dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 100])
def test_every_number_is_its_code_times_its_scale(count):
    torch.manual_seed(0)
    packed = torch.randint(256, (-(-count // 2),), dtype=torch.uint8)
    code, scale = torch.randn(16), torch.rand(-(-count // 32)) + 0.5
    found = reference.dequantise(packed, code, scale, 32, (count,), torch.float64)
    expected = by_hand(packed, code.double().tolist(), scale.double().tolist(), 32, count)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)  # one rounding to float32


def test_nothing():
    empty = torch.empty(0, dtype=torch.uint8)
    assert reference.dequantise(empty, torch.randn(16), torch.empty(0), 64, (0, 8), torch.float32).shape == (0, 8)


def test_nested_scales():
    torch.manual_seed(0)
    codes, table = torch.randint(256, (7,), dtype=torch.uint8), torch.randn(256)
    inner, offset = torch.rand(4), torch.tensor(0.25)
    found = reference.scales(codes, inner, table, offset, 2)
    expected = [table[int(c)] * inner[at // 2] + offset for at, c in enumerate(codes)]
    assert torch.equal(found, torch.stack(expected))


def test_the_codes_are_those_of_the_paper():
    # NF4: 8 quantiles below zero, zero, 7 above (Dettmers et al., appendix E), from the normal distribution itself
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    most = 0.9677083
    above = normal.icdf(torch.linspace(most, 0.5, 9, dtype=torch.float64)[:-1])
    below = -normal.icdf(torch.linspace(most, 0.5, 8, dtype=torch.float64)[:-1])
    exact = torch.cat([above, below, torch.zeros(1, dtype=torch.float64)]).sort().values
    torch.testing.assert_close(
        torch.tensor(reference.NF4, dtype=torch.float64), exact / exact.abs().max(), atol=1e-6, rtol=0
    )
    # FP4: sign, 2 bits of exponent, 1 of mantissa
    assert math.isclose(reference.FP4[3], 1.0) and math.isclose(reference.FP4[11], -1.0)
    assert math.isclose(reference.FP4[7] / reference.FP4[6], 1.5)
