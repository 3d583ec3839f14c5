"""Losses are those of sentence-transformers; the global batch is seen whole with the memory of a micro-batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from sklearn.metrics import ndcg_score

from aitrain.config import RunConfig
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.errors import DataError, RecipeError
from aitrain.recipe import compose
from aitrain.tasks.embeddings import Embeddings, _pool
from aitrain.tasks.registry import task_of
from aitrain.tasks.retrieval_metrics import ranks_of, search_metrics
from aitrain.tasks.task import ExportJob, Measured
from aitrain.trainer.module import Module

from .tiny_bert import WORDS, make_bert

ALONE = Group(Ranks(), "cpu")
ROWS: list[dict[str, Any]] = [
    {
        "query": f"{WORDS[at]} {WORDS[at + 3]}",
        "positive": f"{WORDS[at + 1]} is {WORDS[at + 2]}",
        "negatives": [WORDS[at]],
    }
    for at in range(8)
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("bert"), dropout=0.1)


def config(bert: Path, folder: Path, *words: str, rows: list[dict[str, Any]] = ROWS) -> RunConfig:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = [f"model.path={bert}", f"data.path={path}", "data.sequence_tokens=16", "data.validation_share=null"]
    return compose("embeddings", [*start, "trainer.accelerator=cpu", "trainer.precision=fp32", *words])


def made(config: RunConfig) -> tuple[Embeddings, Any]:
    task = task_of(config)
    assert isinstance(task, Embeddings)
    return task, task.samples(ALONE)


@pytest.fixture
def exported(bert: Path, tmp_path: Path) -> tuple[Embeddings, Any, Any, Path]:
    """The task, its samples, its model, and the folder that it exports."""
    (tmp_path / "made").mkdir()
    task, splits = made(config(bert, tmp_path / "made"))
    model: Any = task.build().eval()
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    task.export(weights, ExportJob(tmp_path / "out", "run"))
    return task, splits, model, tmp_path / "out/model"


def test_the_loss_is_that_of_sentence_transformers(exported: tuple[Embeddings, Any, Any, Path]) -> None:
    task, splits, model, folder = exported
    theirs = SentenceTransformer(str(folder), device="cpu").eval()
    features = [
        theirs.preprocess([row[key] if key != "negatives" else row[key][0] for row in ROWS])
        for key in ("query", "positive", "negatives")
    ]
    ours = task.loss_sum(model, splits.train.collate(np.arange(8), 9)) / 8  # one row without a pair
    expected = MultipleNegativesRankingLoss(theirs, scale=20.0)(features, None)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert task.shown_sample(splits.train, 1).splitlines() == [
        "sample 1",
        f"question  [CLS] {ROWS[1]['query']} [SEP]",
        f"text      [CLS] {ROWS[1]['positive']} [SEP]",
        f"negative  [CLS] {ROWS[1]['negatives'][0]} [SEP]",
    ]


def test_matryoshka_is_that_of_sentence_transformers(bert: Path, tmp_path: Path, exported: Any) -> None:
    _, _, model, folder = exported
    task, splits = made(config(bert, tmp_path, "task.matryoshka=[16,8]"))
    theirs = SentenceTransformer(str(folder), device="cpu").eval()
    plain = MultipleNegativesRankingLoss(theirs, scale=20.0)
    features = [theirs.preprocess([row[key] for row in ROWS]) for key in ("query", "positive")]
    features.append(theirs.preprocess([row["negatives"][0] for row in ROWS]))
    expected = MatryoshkaLoss(theirs, plain, [32, 16, 8])(features, None) / 3
    ours = task.loss_sum(model, splits.train.collate(np.arange(8), 8)) / 8
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_the_folder_gives_the_same_vectors_in_sentence_transformers(exported: Any) -> None:
    task, _, model, folder = exported
    texts = [row["query"] for row in ROWS]
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts)
    with torch.no_grad():
        ours = task.vectors(model, task.padded(task.tokenise(texts), len(texts)))
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_gradients_of_micro_batches_are_those_of_the_whole_batch(bert: Path, tmp_path: Path, parts: int) -> None:
    """With dropout: the second pass must draw what the first one drew."""
    task, splits = made(config(bert, tmp_path))
    share = [splits.train.collate(np.arange(at, at + 8 // parts), 8 // parts) for at in range(0, 8, 8 // parts)]
    module = Module(task, 1, parts)
    module.model = task.build().train()
    torch.manual_seed(5)
    for at, batch in enumerate(share):
        given = batch | {"global_weight": 8} | ({"share": share} if at == 0 else {})
        (module.training_step(given, at) / parts).backward()
    found = {name: weight.grad.clone() for name, weight in module.model.named_parameters() if weight.grad is not None}
    assert module.loss_sum is not None
    module.zero_grad()
    torch.manual_seed(5)
    outputs = torch.cat([task.outputs(module.model, batch) for batch in share])
    whole = task.gathered_loss(outputs, torch.cat([task.marks(batch) for batch in share]))
    torch.testing.assert_close(module.loss_sum, whole.detach())
    (whole / 8).backward()
    for name, weight in module.model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_equal_texts_are_no_negatives(bert: Path, tmp_path: Path) -> None:
    rows = [{"query": "a", "positive": "pump"}, {"query": "b", "positive": "pump"}, {"query": "c", "positive": "door"}]
    task, splits = made(config(bert, tmp_path, rows=rows))
    model = task.build().eval()
    batch = splits.train.collate(np.arange(3), 3)
    vectors = task.outputs(model, batch)
    scores = vectors[:, 0] @ vectors[:, 1].T / task.keys.temperature
    expected = sum(
        torch.nn.functional.cross_entropy(scores[row, seen][None], torch.tensor([0]), reduction="sum")
        for row, seen in enumerate([[0, 2], [1, 2], [2, 0, 1]])
    )
    torch.testing.assert_close(task.loss_sum(model, batch), expected, rtol=1e-5, atol=1e-6)


def test_metrics_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    scores, right = torch.randn(50, 30, dtype=torch.float64), torch.randint(30, (50,))
    found = search_metrics(ranks_of(scores, right))
    relevant = torch.nn.functional.one_hot(right, 30)
    assert found["ndcg_at_10"] == pytest.approx(ndcg_score(relevant, scores, k=10))
    top = scores.topk(5, 1).indices
    assert found["recall_at_5"] == pytest.approx(float((top == right[:, None]).any(1).double().mean()))


def test_the_pool_holds_each_text_once(bert: Path, tmp_path: Path) -> None:
    rows = [{"query": "a", "positive": "pump"}, {"query": "b", "positive": "pump", "negatives": ["door"]}]
    rows.append({"query": "c", "positive": "door"})
    _, splits = made(config(bert, tmp_path, rows=rows))
    texts, right = _pool(splits.train.collate(np.arange(3), 3)["marks"])
    assert len(texts) == 2 and right.tolist() == [0, 0, 1]


def test_marks_survive_the_way_through_floats(bert: Path, tmp_path: Path) -> None:
    task, splits = made(config(bert, tmp_path))
    model = task.build().eval()
    batch = splits.train.collate(np.arange(8), 8)
    with torch.no_grad():
        found = task.measure(model, batch)
        loss = float(task.gathered_loss(task.outputs(model, batch).double(), batch["marks"])) / 8
    assert task.metrics(Measured(found.sums, found.rows))["loss"] == pytest.approx(loss, rel=1e-6)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no question": (
        {"positive": "a"},
        "train.jsonl:9: no column or key 'query' (here: 'positive'): write data.query_field=COLUMN",
    ),
    "no text": ({"query": "a"}, "train.jsonl:9: no column or key 'positive'"),
    "empty": ({"query": "a", "positive": ""}, "train.jsonl:9: 'positive' is '', not a text"),
    "both": ({"query": "a", "positive": "b", "negatives": ["b"]}, "train.jsonl:9: the same text is in 'positive'"),
    "no list": ({"query": "a", "positive": "b", "negatives": 3}, "train.jsonl:9: 'negatives' must be a text or a list"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_data_names_file_and_line(bert: Path, tmp_path: Path, kind: str) -> None:
    row, says = WRONG[kind]
    with pytest.raises(DataError) as caught:
        made(config(bert, tmp_path, rows=[*ROWS, row]))
    assert says in str(caught.value)


def test_lengths_beyond_the_vector_are_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"task.matryoshka=\[64\]: the model's vectors have 32 dimensions"):
        task_of(config(bert, tmp_path, "task.matryoshka=[64]"))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_padding_changes_no_vector(bert: Path, tmp_path: Path, pooling: str) -> None:
    task, _ = made(config(bert, tmp_path, f"task.pooling={pooling}"))
    model = task.build().eval()
    ids = task.tokenise(["pump", "the water is late the water is late"])
    with torch.no_grad():
        both, alone = task.vectors(model, task.padded(ids, 2))[0], task.vectors(model, task.padded(ids[:1], 1))[0]
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-6)
