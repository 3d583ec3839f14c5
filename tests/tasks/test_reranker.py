"""Scores are those of sentence-transformers' cross-encoder; candidates are the record's own first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from aitrain.config import RunConfig
from aitrain.data.pairs import PairedTexts
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.errors import DataError
from aitrain.recipe import compose
from aitrain.tasks.registry import task_of
from aitrain.tasks.reranker import Reranker, candidates
from aitrain.tasks.task import ExportJob, Measured

from .tiny_bert import WORDS, make_bert

ALONE = Group(Ranks(), "cpu")
ROWS: list[dict[str, Any]] = [
    {"query": f"{one} {last}", "positive": f"{two} is {three}", "negatives": [one]}
    for one, two, three, last in zip(WORDS[:8], WORDS[1:], WORDS[2:], WORDS[3:], strict=False)
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("bert"))


def config(bert: Path, folder: Path, *words: str) -> RunConfig:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    start = [f"model.path={bert}", f"data.path={folder}/train.jsonl", "data.sequence_tokens=24"]
    return compose("reranker", [*start, "trainer.accelerator=cpu", "trainer.precision=fp32", *words])


def made(config: RunConfig) -> tuple[Reranker, Any]:
    task = task_of(config)
    assert isinstance(task, Reranker)
    return task, task.samples(ALONE)


def test_the_loss_is_a_cross_entropy_over_the_scores_of_a_cross_encoder(bert: Path, tmp_path: Path) -> None:
    task, splits = made(config(bert, tmp_path, "task.negatives=3", "data.validation_share=null"))
    torch.manual_seed(0)
    model: Any = task.build().eval()
    with torch.no_grad():  # else all scores are nearly 0
        for weight in model.parameters():
            weight *= 8 if weight.dim() > 1 else 1
    task.export(dict(model.named_parameters()), ExportJob(tmp_path / "out", "run"))
    theirs = CrossEncoder(str(tmp_path / "out/model"), device="cpu", activation_fn=torch.nn.Identity())
    found = PairedTexts([r["query"] for r in ROWS], [r["positive"] for r in ROWS], [r["negatives"] for r in ROWS])
    texts = [candidates(found, at, 3) for at in range(8)]
    pairs = [(row["query"], text) for row, given in zip(ROWS, texts, strict=True) for text in given]
    scores = torch.from_numpy(theirs.predict(pairs)).view(8, 4)
    expected = torch.nn.functional.cross_entropy(scores, torch.zeros(8, dtype=torch.int64), reduction="sum")
    first, *others = task.shown_sample(splits.train, 0).splitlines()[1:]
    assert first == f"right  [CLS] {ROWS[0]['query']} [SEP] {ROWS[0]['positive']} [SEP]"
    assert len(others) == 3 and all(line.startswith(f"wrong  [CLS] {ROWS[0]['query']} [SEP] ") for line in others)
    batch = splits.train.collate(np.arange(8), 10)  # two rows without a question
    torch.testing.assert_close(task.loss_sum(model, batch), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        (tmp_path / "new.jsonl").write_text(json.dumps({"query": ROWS[0]["query"], "texts": texts[0]}) + "\n")
        (said,) = task.predictions(model, tmp_path / "new.jsonl", torch.device("cpu"))
        task.data = replace(task.data, columns={"query": "vraag", "positive": "antwoord"})
        (tmp_path / "new.jsonl").write_text(json.dumps({"vraag": ROWS[0]["query"], "texts": texts[0]}) + "\n")
        assert [said] == list(task.predictions(model, tmp_path / "new.jsonl", torch.device("cpu")))
    order = scores[0].argsort(descending=True)
    assert [each["text"] for each in said["texts"]] == [texts[0][at] for at in order]
    assert [each["score"] for each in said["texts"]] == pytest.approx(scores[0][order].tolist(), abs=1e-5)


def test_candidates_are_the_records_own_first_and_never_right() -> None:
    found = PairedTexts(list("abcd"), ["x", "y", "x", "z"], [["n"], [], [], []], [f"f:{n}" for n in range(4)])
    assert candidates(found, 0, 1) == ["x", "n"]
    assert set(candidates(found, 0, 3)) == {"x", "n", "y", "z"} and candidates(found, 0, 3)[:2] == ["x", "n"]
    assert set(candidates(found, 2, 2)) == {"x", "y", "z"}
    with pytest.raises(DataError, match=r"f:2: there are not 3 other texts in the file: write task.negatives=2"):
        candidates(found, 2, 3)


def test_metrics_by_hand(bert: Path, tmp_path: Path) -> None:
    task, splits = made(config(bert, tmp_path, "task.negatives=2"))
    rows = torch.tensor([[3.0, 1, 2], [1.0, 3, 2], [2.0, 3, 1]])
    found = task.metrics(Measured(torch.tensor([6.0, 3.0]), rows))
    assert found["loss"] == 2.0 and found["recall_at_1"] == pytest.approx(1 / 3)
    assert found["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert task.baselines(splits)["chance"]["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_measures_of_batches_are_those_of_the_whole(bert: Path, tmp_path: Path) -> None:
    task, splits = made(config(bert, tmp_path, "data.validation_share=null"))
    model = task.build().eval()
    with torch.no_grad():
        whole = task.measure(model, splits.train.collate(np.arange(8), 8)).sums
        parts = [task.measure(model, splits.train.collate(np.arange(at, at + 4), 5)).sums for at in (0, 4)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-6)


def test_answers_and_a_picture(bert: Path, tmp_path: Path) -> None:
    import xml.etree.ElementTree as ET

    task, splits = made(config(bert, tmp_path, "data.validation_share=null"))
    model: Any = task.build().eval()
    batch = splits.train.collate(np.arange(3), 3)
    with torch.no_grad():
        answers = task.answers(model, torch.device("cpu"), lambda: False)
        scores = task.scores(model, batch).view(3, -1)
        found = task.measure(model, splits.train.collate(np.arange(len(splits.train)), len(splits.train)))
    assert [answer["answer"].split(":")[0] for answer in answers] == [
        "right" if choice == 0 else "wrong" for choice in scores.argmax(1).tolist()
    ]
    assert [answer["prompt"] for answer in answers] == [row["query"] for row in ROWS[:3]]
    assert task.picture(found, tmp_path / "p.svg")
    drawn = [each.text or "" for each in ET.parse(tmp_path / "p.svg").getroot() if each.tag.endswith("text")]
    assert sum(float(word) for word in drawn if word.replace(".", "").isdigit()) == pytest.approx(1, abs=0.03)
