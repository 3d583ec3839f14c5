"""Learning rates at every edge, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from aitrain.config.schedule import Constant, Cosine, Linear, Schedule, Wsd
from aitrain.errors import RecipeError
from aitrain.optim.schedule import learning_rate_factor, warmup_steps


def curve(schedule: Schedule, total: int) -> list[float]:
    return [learning_rate_factor(schedule, step, total) for step in range(total)]


def test_constant_after_a_warm_up() -> None:
    assert curve(Constant(warmup_steps=3), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert curve(Constant(warmup_steps=0), 3) == [1.0, 1.0, 1.0]


def test_linear() -> None:
    assert curve(Linear(warmup_steps=1, min_lr_ratio=0.0), 5) == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.25])
    assert curve(Linear(warmup_steps=0, min_lr_ratio=0.2), 4) == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_cosine() -> None:
    root = math.sqrt(0.5)
    expected = [1.0, (1 + root) / 2, 0.5, (1 - root) / 2]
    assert curve(Cosine(warmup_steps=0), 4) == pytest.approx(expected)
    raised = [0.1 + 0.9 * share for share in expected]
    assert curve(Cosine(warmup_steps=1, min_lr_ratio=0.1), 5) == pytest.approx([0.5, *raised])


def test_warm_up_stable_decay() -> None:
    found = curve(Wsd(warmup_steps=1, decay_steps=2, min_lr_ratio=0.1), 6)
    assert found == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, 0.55])


@pytest.mark.parametrize("total", [10, 17, 100, 1001])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_the_fall_is_that_of_transformers(total: int, warmup: int) -> None:
    """An independent reference; only the warm-up differs, whose first step is not at zero here."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for kind, reference in ((Linear, get_linear_schedule_with_warmup), (Cosine, get_cosine_schedule_with_warmup)):
        factor = reference(optimizer, warmup, total).lr_lambdas[0]
        assert curve(kind(warmup_steps=warmup), total)[warmup:] == pytest.approx(
            [factor(step) for step in range(warmup, total)]
        )


@pytest.mark.parametrize("kind", [Linear, Cosine, Wsd])
@pytest.mark.parametrize("total", [10, 17, 100, 1001])
def test_the_last_step_still_learns(kind: type[Linear | Cosine | Wsd], total: int) -> None:
    factors = curve(kind(), total)
    assert 0 < factors[-1] == min(factors[len(factors) // 2 :])
    assert learning_rate_factor(kind(min_lr_ratio=0.05), total, total) == pytest.approx(0.05), "reached behind it"
    assert max(factors) == 1.0
    peak = factors.index(1.0)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_shares_of_the_run() -> None:
    assert [warmup_steps(Cosine(), total) for total in (1, 16, 17, 100, 1000)] == [0, 0, 1, 3, 30]
    assert warmup_steps(Cosine(warmup_steps=7), 1000) == 7
    factors = curve(Wsd(), 100)
    assert (factors[:3], factors[3], factors[80]) == ([0.25, 0.5, 0.75], 1.0, 1.0)
    assert factors[81] == pytest.approx(19 / 20)


@pytest.mark.parametrize("schedule", [Constant(), Linear(), Cosine(), Wsd()])
def test_a_run_of_one_step_trains(schedule: Schedule) -> None:
    assert curve(schedule, 1) == [1.0]


@pytest.mark.parametrize("schedule", [Linear(warmup_steps=4), Cosine(warmup_steps=4), Constant(warmup_steps=4)])
def test_a_warm_up_as_long_as_the_run_is_allowed(schedule: Schedule) -> None:
    assert curve(schedule, 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize(
    ("schedule", "numbers"),
    [
        (Constant(warmup_steps=5), "warmup_steps=5 and the decay over 0 steps are longer than the run of 4 steps"),
        (Cosine(warmup_steps=5), "warmup_steps=5 and the decay over 0 steps"),
        (Wsd(warmup_steps=2, decay_steps=3), "warmup_steps=2 and the decay over 3 steps"),
    ],
)
def test_longer_than_the_run_is_refused(schedule: Schedule, numbers: str) -> None:
    with pytest.raises(RecipeError, match=numbers):
        learning_rate_factor(schedule, 0, 4)


def test_steps_after_the_end_keep_the_last_rate() -> None:
    """A run that was lengthened by hand never sees a rate outside the range."""
    assert learning_rate_factor(Cosine(warmup_steps=0, min_lr_ratio=0.3), 50, 10) == pytest.approx(0.3)
