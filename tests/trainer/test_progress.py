"""What a checkpoint keeps of a run's progress, and what counts as an improvement."""

from __future__ import annotations

import json

from aitrain.tasks.metric import Metric
from aitrain.trainer.progress import Progress


def judged(losses: list[float], min_improvement: float = 0.0) -> tuple[Progress, list[bool]]:
    progress = Progress()
    answers = []
    for step, loss in enumerate(losses):
        progress.step = step
        answers.append(progress.judge(loss, Metric(), min_improvement))
    return progress, answers


def test_every_new_lowest_loss_is_an_improvement() -> None:
    progress, answers = judged([3.0, 2.0, 2.0, 2.5, 1.0])
    assert answers == [True, True, False, False, True]
    assert progress.best == 1.0
    assert progress.validation == {"0": 3.0, "1": 2.0, "2": 2.0, "3": 2.5, "4": 1.0}


def test_evaluations_without_improvement_are_counted_from_the_last_one() -> None:
    counts = [judged([3.0, 2.0, 2.5, 2.0, 1.0][:n])[0].evaluations_without_improvement for n in range(1, 6)]
    assert counts == [0, 0, 1, 2, 0]


def test_a_small_fall_is_none() -> None:
    """Small falls add up: each is measured from the best loss that counted."""
    progress, answers = judged([3.0, 2.75, 2.5, 2.25], min_improvement=0.5)
    assert answers == [True, False, False, True]
    assert progress.best == 2.25


def test_not_a_number_is_no_improvement() -> None:
    progress, answers = judged([2.0, float("nan"), 1.0])
    assert answers == [True, False, True]
    assert progress.best == 1.0


def test_state_comes_back_through_json() -> None:
    progress, _ = judged([3.0, 2.0, 2.5])
    progress.samples, progress.units, progress.seconds, progress.best_step = 12, 3456, 7.5, 1
    assert Progress.from_state(json.loads(json.dumps(progress.as_state()))) == progress


def test_state_of_another_version() -> None:
    assert Progress.from_state({"step": 3, "of_a_later_version": 1}) == Progress(step=3)


def test_older_checkpoints_have_other_names() -> None:
    assert Progress.from_state({"tokens": 7, "best_loss": 2.0}) == Progress(units=7, best=2.0)


def test_a_metric_that_grows_when_it_is_good() -> None:
    progress, metric = Progress(), Metric("accuracy", greater_is_better=True)
    kept = []
    for step, value in enumerate([0.5, 0.7, 0.6, 0.9]):
        progress.step = step
        kept.append(progress.judge(value, metric, 0.0))
        progress.note_kept(metric)
    assert kept == [True, True, False, True]
    assert (progress.best, progress.best_step) == (0.9, 3)
