"""The verdict of a benchmark, on accounts whose right answer can be told by hand."""

import math
from dataclasses import replace

import pytest

from aitrain.bench.comparison import judge, step_seconds, table
from aitrain.bench.job import Account

TOKENS = [100, 100, 200, 100]


def account(steps_s: list[float], loss: float = 2.0, norm: float = 1.0) -> Account:
    ends = [10.0 + sum(steps_s[: n + 1]) for n in range(len(steps_s))]
    return Account([0.0, *ends], ends, [loss] * len(ends), [norm] * len(ends), 0.5, {"torch": "0"}, 1)


def test_a_step_lasts_from_the_end_of_the_one_before() -> None:
    assert step_seconds(account([9.0, 1.0, 2.0, 3.0]), warm_up=1) == pytest.approx([1.0, 2.0, 3.0])
    assert step_seconds(account([9.0, 1.0, 2.0, 3.0]), warm_up=3) == pytest.approx([3.0])


def test_ratios_are_taken_on_the_same_batch_and_warm_up_is_left_out() -> None:
    rounds = [
        {"bare": account([9, 1.0, 2.0, 1.0]), "aitrain": account([90, 1.1, 2.2, 1.1]), "trl": account([5, 2, 4, 2])},
        {"bare": account([9, 1.0, 2.0, 1.0]), "aitrain": account([90, 1.3, 2.6, 1.3]), "trl": account([5, 2, 4, 2])},
    ]
    bare, ours, trl = judge(rounds, TOKENS, warm_up=1, precision="fp32")
    assert bare.to_bare == pytest.approx(1.0)
    assert ours.to_bare == pytest.approx(1.2)
    assert ours.to_bare_rounds == pytest.approx([1.1, 1.3])
    assert ours.to_trl == pytest.approx(0.6)
    assert trl.to_bare == pytest.approx(2.0)
    assert bare.step_ms == pytest.approx(1000.0)
    assert bare.tokens_per_s == pytest.approx(100.0)


@pytest.mark.parametrize(
    "change",
    [
        {"losses": [2.0, 2.0, 2.0, 2.001]},
        {"losses": [2.0, 2.0, 2.0, math.nan]},
        {"losses": [2.0, 2.0, 2.0]},
        {"gradient_norms": [1.0, 1.0, 1.0, 0.25]},  # a wrong scale that Adam's losses do not show
    ],
)
def test_other_work_is_called_wrong_and_gets_no_ratio(change: dict[str, list[float]]) -> None:
    rounds = [{"bare": account([1, 1, 1, 1]), "trl": replace(account([1, 1, 1, 1]), **change)}]
    bare, trl = judge(rounds, TOKENS, warm_up=1, precision="fp32")
    assert bare.right
    assert not trl.right
    assert trl.to_bare is None and trl.to_bare_rounds == [] and bare.to_trl is None
    assert "WRONG" in table([bare, trl]).splitlines()[2]


def test_rounding_of_bf16_is_allowed_only_in_bf16() -> None:
    rounds = [{"bare": account([1, 1, 1, 1]), "aitrain": account([1, 1, 1, 1], loss=2.005)}]
    assert judge(rounds, TOKENS, 1, "bf16")[1].right
    assert not judge(rounds, TOKENS, 1, "fp32")[1].right
