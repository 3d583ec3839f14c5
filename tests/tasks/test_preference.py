"""Losses are those of the papers' formulas on a whole forward pass; the reference is the model at its start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from aitrain.config import RunConfig
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.errors import DataError, RecipeError
from aitrain.models.assets import resolve
from aitrain.recipe import compose
from aitrain.tasks.preference import PreferenceTask
from aitrain.tasks.registry import task_of

ALONE = Group(Ranks(), "cpu")
ROWS = [
    {"prompt": "Translate to Dutch: light", "chosen": "licht", "rejected": "donker en zwart"},
    {"prompt": "Say yes", "chosen": "Ja, dat is goed.", "rejected": "Nee"},
    {"prompt": [{"role": "user", "content": "Hello"}], "chosen": "Hallo daar", "rejected": "Weg"},
] * 3


def config(folder: Path, *words: str, rows: list[Any] = ROWS) -> RunConfig:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = ["model.path=asset:tiny-llama", f"data.path={path}", "data.sequence_tokens=128", "adapter=none"]
    start += ["data.validation_share=null", "trainer.accelerator=cpu", "trainer.precision=fp32"]
    return compose("preference_dpo", [*start, *words])


def made(config: RunConfig) -> tuple[PreferenceTask, Any]:
    task = task_of(config)
    assert isinstance(task, PreferenceTask)
    return task, task.samples(ALONE)


def sums(model: Any, samples: Any, side: str, rows: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of answers, one sequence at a time, without padding and without our code."""
    found, counts = [], []
    for row in rows:
        ids = torch.tensor(samples.columns.get(side, row).tolist())[None]
        marks = torch.tensor(samples.columns.get(f"{side}_marks", row).tolist(), dtype=torch.bool)[1:]
        logs = model(input_ids=ids).logits[0, :-1].log_softmax(1)
        found.append(logs.gather(1, ids[0, 1:, None])[:, 0][marks].sum())
        counts.append(marks.sum())
    return torch.stack(found), torch.stack(counts)


def moved(task: PreferenceTask) -> Any:
    """The model after some training, so that it is not its own reference."""
    torch.manual_seed(0)
    model: Any = task.build().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn_like(weight)
    return model


FORMULAS = {
    "dpo": lambda c, r, n, m, rc, rr: -F.logsigmoid(0.1 * ((c - rc) - (r - rr))),
    "ipo": lambda c, r, n, m, rc, rr: (((c - rc) / n - (r - rr) / m) - 1 / 0.2) ** 2,
    "simpo": lambda c, r, n, m, rc, rr: -F.logsigmoid(0.1 * (c / n - r / m) - 0.5),
    "orpo": lambda c, r, n, m, rc, rr: (
        -c / n
        - 0.1
        * F.logsigmoid(torch.log((c / n).exp() / (1 - (c / n).exp())) - torch.log((r / m).exp() / (1 - (r / m).exp())))
    ),
}


@pytest.mark.parametrize("loss", FORMULAS)
def test_losses_are_those_of_the_papers(tmp_path: Path, loss: str) -> None:
    task, splits = made(config(tmp_path, f"task.loss={loss}"))
    model, rows = moved(task), range(5)
    start = AutoModelForCausalLM.from_pretrained(resolve("asset:tiny-llama"), dtype=torch.float32).eval()
    with torch.no_grad():
        (c, n), (r, m) = (sums(model, splits.train, side, rows) for side in ("chosen", "rejected"))
        rc, rr = (sums(start, splits.train, side, rows)[0] for side in ("chosen", "rejected"))
        expected = FORMULAS[loss](c, r, n, m, rc, rr).sum()
        batch = splits.train.collate(np.arange(5), 7)  # two rows without a pair
        torch.testing.assert_close(task.loss_sum(model, batch), expected, rtol=1e-5, atol=1e-5)
        measured = task.measure(model, batch).sums
        assert measured[:2].tolist() == pytest.approx([float(expected), 5.0], rel=1e-5)


def test_label_smoothing(tmp_path: Path) -> None:
    task, splits = made(config(tmp_path, "task.label_smoothing=0.2"))
    model = moved(task)
    with torch.no_grad():
        batch = splits.train.collate(np.arange(4), 4)
        ahead = task.pairs(model, batch).margins(task.keys)
        expected = (-0.8 * F.logsigmoid(ahead) - 0.2 * F.logsigmoid(-ahead)).sum()
        torch.testing.assert_close(task.loss_sum(model, batch), expected)


def test_before_training_no_answer_is_ahead(tmp_path: Path) -> None:
    task, splits = made(config(tmp_path))
    model = task.build().eval()
    with torch.no_grad():
        found = task.metrics(task.measure(model, splits.train.collate(np.arange(9), 9)))
    assert found["loss"] == pytest.approx(np.log(2), abs=1e-5) and found["margin"] == pytest.approx(0, abs=1e-5)


def test_the_reference_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*ROWS, {"prompt": "only here", "chosen": "x y", "rejected": "z"}]
    first = made(config(tmp_path, rows=rows))[1]

    def again(*_: Any) -> None:
        raise AssertionError("the reference was in the cache")

    monkeypatch.setattr(PreferenceTask, "_reference", again)
    second = made(config(tmp_path, rows=rows))[1]
    np.testing.assert_array_equal(first.train.reference, second.train.reference)
    assert first.train.reference.shape == (10, 2) and (first.train.reference < 0).all()


WRONG: dict[str, tuple[Any, str]] = {
    "no chosen": ({"prompt": "a", "rejected": "b"}, "train.jsonl:10: no 'chosen' (keys here: 'prompt', 'rejected')"),
    "the same": (
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        "train.jsonl:10: 'chosen' and 'rejected' are the same",
    ),
    "long": ({"prompt": "a " * 200, "chosen": "b", "rejected": "c"}, "1 of 10 records have an answer longer than"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_data_names_file_and_line(tmp_path: Path, kind: str) -> None:
    row, says = WRONG[kind]
    with pytest.raises(DataError) as caught:
        made(config(tmp_path, rows=[*ROWS, row]))
    assert says in str(caught.value)


def test_keys_that_have_no_effect_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="task.label_smoothing=0.1 has no effect with task.loss=ipo"):
        config(tmp_path, "task.loss=ipo", "task.label_smoothing=0.1")
    with pytest.raises(RecipeError, match="would cut the end of one answer and not of the other"):
        config(tmp_path, "data.too_long=truncate")


def test_trivial_answers(tmp_path: Path) -> None:
    task, splits = made(config(tmp_path, "data.validation_samples=6", "data.max_overlap=1"))
    found = task.baselines(splits)
    assert found["a coin"]["accuracy"] == 0.5 and max(value["accuracy"] for value in found.values()) >= 0.5


def test_a_pair_needs_the_memory_of_two_sequences(tmp_path: Path) -> None:
    from aitrain.tasks.causal_lm import CausalLM
    from aitrain.tasks.task import Room

    task, room = task_of(config(tmp_path)), Room(10**9, 4)
    assert isinstance(task, PreferenceTask)
    assert task.fitting(room) == (CausalLM.fitting(task, room) or 0) // 2 > 0
