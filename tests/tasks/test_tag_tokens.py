"""Losses are those of transformers' own head; entities are counted whole; labels stand at the first token of a word."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoModelForTokenClassification, AutoTokenizer

from aitrain.config import RunConfig
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.recipe import compose
from aitrain.tasks.registry import task_of
from aitrain.tasks.tag_tokens import TaggedSamples, TagTokens
from aitrain.tasks.task import ExportJob, Measured

from .tiny_bert import make_bert

ALONE = Group(Ranks(), "cpu")
TEXTS = [("pump order for jan today", (15, 18)), ("piet paid late", (0, 4)), ("water is a leak", None)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("tag")
    rows = [
        {"text": text, "entities": [] if span is None else [{"start": span[0], "end": span[1], "label": "NAME"}]}
        for text, span in TEXTS * 4
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"model.path={make_bert(folder / 'bert')}", f"data.path={folder}/train.jsonl", "data.sequence_tokens=20"]
    words.append("data.max_overlap=1")  # the texts stand there four times
    return compose("tag_tokens", [*words, "trainer.accelerator=cpu", "trainer.precision=fp32"])


def made(config: RunConfig) -> tuple[TagTokens, Any]:
    task = task_of(config)
    assert isinstance(task, TagTokens)
    return task, task.samples(ALONE)


def test_labels_stand_at_the_first_token_of_each_word(config: RunConfig) -> None:
    task, splits = made(config)
    assert task.labels == ["O", "B-NAME", "I-NAME"]
    columns = splits.train.columns
    at = next(i for i in range(len(columns)) if 1 in columns.get("labels", i) and len(columns.get("ids", i)) > 12)
    tokens = task.tokenizer.convert_ids_to_tokens(columns.get("ids", at).tolist())
    labels = columns.get("labels", at).tolist()
    for token, label in zip(tokens, labels, strict=True):
        assert (label == -100) == (token.startswith("##") or token in ("[CLS]", "[SEP]")), (token, label)
    assert [token for token, label in zip(tokens, labels, strict=True) if label == 1] == ["j"]
    assert splits.train.weights[at] == 5
    shown = task.shown_sample(splits.train, at)
    assert re.fullmatch(rf"sample {at}\n\[CLS\] .*\[\[j.* \| NAME\]\].* \[SEP\]", shown), shown
    ids = np.array(task.tokenizer("paid piet")["input_ids"])
    behind = {"ids": ids, "labels": np.array([-100, 0, 1, *[-100] * (len(ids) - 3)])}
    only: Any = SimpleNamespace(get=lambda name, at: behind[name])
    said = task.shown_sample(TaggedSamples(task, only), 0)
    assert said.startswith("sample 0\n[CLS] paid [[p") and said.endswith(" | NAME]] [SEP]"), (
        "[SEP] is no part of a name"
    )


def test_the_loss_is_that_of_transformers_own_head(config: RunConfig) -> None:
    task, splits = made(config)
    model: Any = task.build().eval()
    batch = splits.train.collate(np.arange(5), 7)
    given = {key: batch[key][:5] for key in ("input_ids", "attention_mask", "labels")}
    ours = task.loss_sum(model, batch) / splits.train.weights[:5].sum()
    torch.testing.assert_close(ours, model(**given).loss, rtol=1e-5, atol=1e-6)


def test_span_f1_is_that_of_sets_of_spans(config: RunConfig) -> None:
    """Written anew: every entity is a member of a set of all possible spans, and scikit-learn does the rest."""
    task, _ = made(config)
    draw = random.Random(0)
    counts, right, said = np.zeros((1, 3)), [], []
    for _ in range(40):
        rows = [[draw.choice([0, 0, 1, 2]) for _ in range(7)] for _ in range(2)]
        for row in rows:
            for at, label in enumerate(row):
                if label == 2 and (at == 0 or row[at - 1] == 0):
                    row[at] = 1
        counts += task._counted(rows[0], rows[1])
        for row, into in zip(rows, (said, right), strict=True):
            ends = {
                (start, next((end for end in range(start + 1, 7) if row[end] != 2), 7))
                for start in range(7)
                if row[start] == 1
            }
            into += [(start, end) in ends for start in range(7) for end in range(start + 1, 8)]
    sums = torch.cat([torch.tensor([1.0, 1.0]), torch.from_numpy(counts.flatten())])
    assert task.metrics(Measured(sums))["span_f1"] == pytest.approx(f1_score(right, said))


def test_measures_of_batches_are_those_of_the_whole(config: RunConfig) -> None:
    task, splits = made(config)
    model = task.build().eval()
    with torch.no_grad():
        whole = task.measure(model, splits.train.collate(np.arange(8), 8)).sums
        parts = [task.measure(model, splits.train.collate(np.arange(at, at + 4), 5)).sums for at in (0, 4)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-6)


def test_the_list_of_words_is_the_baseline(config: RunConfig) -> None:
    task, splits = made(config)
    (found,) = task.baselines(splits).values()
    assert found["span_f1"] == 1.0, "every word of the held-out texts stands in the training data"


def test_export_and_predictions(config: RunConfig, tmp_path: Path) -> None:
    task, _ = made(config)
    torch.manual_seed(1)
    model: Any = task.build().eval()
    task.export(dict(model.named_parameters()), ExportJob(tmp_path / "out", "run"))
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "out/model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/model")
    given = tokenizer(["pump leak", "jan"], padding=True, return_tensors="pt")
    ours = task.padded(task.tokenise(["pump leak", "jan"]), 2)
    with torch.no_grad():
        expected = model(input_ids=ours["input_ids"], attention_mask=ours["attention_mask"]).logits
        torch.testing.assert_close(plain(**given).logits, expected, rtol=1e-5, atol=1e-6)
        (tmp_path / "new.jsonl").write_text('{"text": "jan paid"}\n')
        (said,) = task.predictions(plain, tmp_path / "new.jsonl", torch.device("cpu"))
        task.data = replace(task.data, columns={"text": "tekst", "entities": "namen"})
        (tmp_path / "new.jsonl").write_text('{"tekst": "jan paid"}\n')
        assert [said] == list(task.predictions(plain, tmp_path / "new.jsonl", torch.device("cpu")))
    for entity in said["entities"]:
        assert said["text"][entity["start"] : entity["end"]] == entity["text"]
    assert said["pseudonymised"].count("[NAME]") == len(said["entities"])
