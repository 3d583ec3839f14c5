"""Judged answers: the loss of the paper over the whole global batch, pairs as two of them, wrong records by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from transformers import AutoModelForCausalLM

from aitrain.errors import DataError, RecipeError
from aitrain.models.assets import resolve
from aitrain.tasks.kto import KtoTask
from aitrain.tasks.registry import task_of
from aitrain.tasks.task import Measured

from .test_preference import ALONE, config, moved, sums

ROWS = [
    {"prompt": "Say yes", "completion": "Ja, dat is goed.", "label": True},
    {"prompt": "Say no", "completion": "Misschien", "label": False},
    {"prompt": [{"role": "user", "content": "Hello"}], "completion": "Hallo daar", "label": 1},
    {"prompt": "Translate to Dutch: light", "chosen": "licht", "rejected": "donker en zwart"},
]


def made(folder: Path, *words: str, rows: Any = ROWS) -> tuple[KtoTask, Any]:
    task = task_of(config(folder, "task.loss=kto", *words, rows=rows))
    assert isinstance(task, KtoTask)
    return task, task.samples(ALONE)


def test_records_become_judged_answers_with_the_answers_of_others(tmp_path: Path) -> None:
    task, splits = made(tmp_path)
    columns = splits.train.columns
    assert columns.single("good").tolist() == [1, 0, 1, 1, 0] and splits.report.counts == {"good": 3, "bad": 2}

    def said(side: str, at: int) -> str:
        ids, marks = columns.get(side, at), columns.get(f"{side}_marks", at)
        return str(task.tokenizer.decode(ids[marks.astype(bool)], skip_special_tokens=True)).strip()

    assert [said("answer", at) for at in (0, 3, 4)] == ["Ja, dat is goed.", "licht", "donker en zwart"]
    assert [said("other", at) for at in (0, 3, 4)] == ["Misschien", "donker en zwart", "Ja, dat is goed."]
    assert "Say yes" in task.tokenizer.decode(columns.get("other", 0))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.5)])
def test_the_loss_is_that_of_the_paper(tmp_path: Path, weights: tuple[float, float]) -> None:
    task, splits = made(tmp_path, f"task.good_weight={weights[0]}", f"task.bad_weight={weights[1]}")
    model, rows = moved(task), range(5)
    start = AutoModelForCausalLM.from_pretrained(resolve("asset:tiny-llama"), dtype=torch.float32).eval()
    with torch.no_grad():
        own, other = (
            sums(model, splits.train, side, rows)[0] - sums(start, splits.train, side, rows)[0]
            for side in ("answer", "other")
        )
        point = max(0.0, float(other.mean()))
        expected = 0.0
        for ratio, good in zip(own.tolist(), (True, False, True, True, False), strict=True):
            value = 1 / (1 + np.exp(-0.1 * (ratio - point) * (1 if good else -1)))
            expected += (weights[0] if good else weights[1]) * (1 - value)
        batch = splits.train.collate(np.arange(5), 7)  # two rows without an answer
        assert float(task.loss_sum(model, batch)) == pytest.approx(expected, rel=1e-5)


def test_the_reference_point_is_never_below_zero_and_has_no_gradient(tmp_path: Path) -> None:
    task, _ = made(tmp_path)
    marks = torch.tensor([[1], [0], [-1]])
    outputs = torch.tensor([[2.0, -3.0], [1.0, -5.0], [9.0, 9.0]], requires_grad=True)
    loss = task.gathered_loss(outputs, marks)
    expected = (1 - torch.sigmoid(torch.tensor(0.2))) + (1 - torch.sigmoid(torch.tensor(-0.1)))
    assert loss.item() == pytest.approx(float(expected), rel=1e-6)
    loss.backward()
    assert outputs.grad is not None and not outputs.grad[:, 1].any() and not outputs.grad[2].any()
    assert outputs.grad[0, 0] < 0 < outputs.grad[1, 0], "a good answer is to rise, a bad one to fall"


def test_metrics_are_of_all_answers_together(tmp_path: Path) -> None:
    task, splits = made(tmp_path, rows=ROWS * 2)
    model = moved(task)
    with torch.no_grad():
        whole = task.measure(model, splits.train.collate(np.arange(10), 10))
        parts = [task.measure(model, splits.train.collate(np.arange(at, at + 5), 8)) for at in (0, 5)]
    rows = torch.cat([part.rows[:5] for part in parts])  # type: ignore[index]
    found = task.metrics(Measured(whole.sums, whole.rows))
    together = task.metrics(Measured(parts[0].sums + parts[1].sums, rows))
    assert together == pytest.approx(found, rel=1e-3, abs=1e-4)
    own, other, good = rows.double().T
    ahead = own - max(0.0, float(other.mean()))
    assert together["accuracy"] == pytest.approx(accuracy_score(good > 0.5, ahead > 0))


def test_a_long_prompt_leaves_something_of_the_other_answer(tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "light " * 100, "completion": "ja", "label": True}]
    task, splits = made(tmp_path, "data.sequence_tokens=120", rows=rows)
    columns = splits.train.columns
    for at in range(len(splits.train)):
        assert len(columns.get("other", at)) <= 120 and columns.get("other_marks", at)[1:].any()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a", "completion": "b"}, "train.jsonl:5: 'label' is None: write true for a good answer"),
        ({"prompt": "a", "completion": "b", "label": "maybe"}, "train.jsonl:5: 'label' is 'maybe'"),
        ({"prompt": "a", "label": True}, "train.jsonl:5: no 'completion' (keys here: 'prompt', 'label')"),
        ({"prompt": "a", "chosen": "b"}, "train.jsonl:5: no 'rejected'"),
        ({"prompt": "a", "completion": "b " * 200, "label": True}, "1 of 6 records have an answer longer than"),
    ],
)
def test_wrong_records_name_file_and_line(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as caught:
        made(tmp_path, rows=[*ROWS, row])
    assert says in str(caught.value)


def test_answers_of_one_kind_and_keys_without_effect(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train.jsonl: every answer is good: give answers of both kinds"):
        made(tmp_path, rows=[{"prompt": "a", "completion": json.dumps(at), "label": True} for at in range(3)])
    with pytest.raises(RecipeError, match="task.good_weight=2.0 has no effect with task.loss=dpo: remove it"):
        config(tmp_path, "task.good_weight=2")
    with pytest.raises(RecipeError, match="task.bad_weight=-1.0 must be 0 or more"):
        config(tmp_path, "task.loss=kto", "task.bad_weight=-1")


def test_always_the_commoner_judgement(tmp_path: Path) -> None:
    task, splits = made(tmp_path, "data.validation_samples=4", "data.max_overlap=1", rows=ROWS * 3)
    found = task.baselines(splits)
    share = float((splits.validation.columns.single("good") == 1).mean())
    assert max(value["accuracy"] for value in found.values()) == pytest.approx(max(share, 1 - share, 0.5))
