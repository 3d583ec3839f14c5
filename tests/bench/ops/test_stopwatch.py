"""Launches are timed in turn, and only what is to be timed is."""

from __future__ import annotations

import time

import pytest
import torch

from aitrain.bench.ops.stopwatch import FEWEST_ROUNDS, MOST_ROUNDS, Launch, interleave, quantile

CPU = torch.device("cpu")


def test_each_round_begins_with_another_launch() -> None:
    seen: list[str] = []
    launches = {name: Launch(lambda _, name=name: seen.append(name)) for name in "abc"}
    found = interleave(launches, CPU, seconds=0.0)
    timed = seen[2 * 3 :]  # each is run twice to warm up
    rounds = ["".join(timed[at : at + 3]) for at in range(0, len(timed), 3)]
    assert rounds == ["abc", "bca", "cab", "abc", "bca"]
    assert all(len(times.seconds) == FEWEST_ROUNDS for times in found.values())


def test_rounds_end_with_the_time_or_at_fifty() -> None:
    assert len(interleave({"a": Launch(lambda _: None)}, CPU, seconds=60.0)["a"].seconds) == MOST_ROUNDS


def test_preparation_is_not_timed_and_reaches_the_launch() -> None:
    got: list[object] = []

    def prepare() -> str:
        time.sleep(0.02)
        return "ready"

    found = interleave({"a": Launch(got.append, prepare)}, CPU, seconds=0.0)
    assert set(got) == {"ready"}
    assert sorted(found["a"].seconds)[0] < 0.02


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.2, 1.8), (0.5, 3.0), (0.8, 4.2), (1.0, 5.0)])
def test_quantile(share: float, expected: float) -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert quantile(values, share) == pytest.approx(expected)
    assert quantile(values, share) == pytest.approx(float(torch.tensor(values).quantile(share)))
