"""What a query sees."""

from __future__ import annotations

from typing import Any

import pytest

from aitrain.errors import RecipeError
from aitrain.ops.attention.pattern import Pattern


@pytest.mark.parametrize(
    ("options", "sides"),
    [
        ({}, (-1, 0)),
        ({"causal": False}, (-1, -1)),
        ({"window": 1}, (0, 0)),
        ({"window": 4096}, (4095, 0)),
        ({"window": 3, "causal": False}, (2, 2)),
    ],
)
def test_sides_count_the_others(options: dict[str, Any], sides: tuple[int, int]) -> None:
    assert Pattern(**options).sides() == sides


def test_scale() -> None:
    assert Pattern().scale_of(64) == 0.125
    assert Pattern(scale=0.0).scale_of(64) == 0.0


def test_every_senseless_option_is_named() -> None:
    with pytest.raises(RecipeError) as refused:
        Pattern(window=0, softcap=-1.0, dropout=1.0)
    assert [fault.split("=")[0] for fault in refused.value.faults] == ["window", "softcap", "dropout"]
