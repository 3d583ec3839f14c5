"""Projections side by side: gaps come back where they were, and what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aitrain.errors import ShapeError
from aitrain.ops.lora.projection import NUMBERS, PARTS, Projection, laid_out, slots, spread, weight_of
from ops.lora.projections import mixed, quantised


def test_gaps_come_back():
    parts, numbers = laid_out(mixed(8, torch.float32))
    assert len(parts) == 5 * PARTS and len(numbers) == 5 * NUMBERS
    present = [part for part in parts if part is not None]
    assert len(present) < len(parts)
    assert all(one is other for one, other in zip(spread(present, numbers), parts, strict=True))
    assert numbers[::NUMBERS] == [9, 5, 6, 7, 3]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_come_back(dtype):
    dense, packed = torch.randn(4, 6), quantised(5, 6)
    parts, numbers = laid_out([Projection(dense), Projection(packed)])
    first, second = slots(parts)
    assert torch.equal(weight_of(first, numbers[:NUMBERS], dtype), dense.to(dtype))
    assert torch.equal(weight_of(second, numbers[NUMBERS:], dtype), packed.dequantise(dtype))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": torch.randn(4, 5)}, "as wide as x"),
        ({"weight": torch.randn(4, 6, requires_grad=True)}, "frozen"),
        ({"bias": torch.randn(4, requires_grad=True)}, "frozen"),
        ({"bias": torch.randn(5)}, "bias"),
        ({"a": torch.randn(2, 5)}, "must be"),
        ({"b": torch.randn(3, 2)}, "must be"),
        ({"b": torch.randn(4, 3)}, "must be"),
        ({"a": None}, "both or none"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    sound = Projection(torch.randn(4, 6), torch.randn(4), torch.randn(2, 6), torch.randn(4, 2))
    sound.check(6)
    with pytest.raises(ShapeError, match=words):
        replace(sound, **change).check(6)
