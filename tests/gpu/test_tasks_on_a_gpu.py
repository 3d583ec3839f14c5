"""The recipes beside language models on a GPU: in fp32 the losses of a CPU, in bf16 they fall."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aitrain.dist.ranks import Ranks
from aitrain.recipe import compose
from aitrain.trainer.fit import fit
from aitrain.trainer.run_directory import RunDirectory

DATA = {
    "classify_text": ("verses-books", "csv"),
    "tag_tokens": ("care-notes", "jsonl"),
    "embeddings": ("verse-pairs", "jsonl"),
    "reranker": ("verse-pairs", "jsonl"),
}


def losses(recipe: str, folder: Path, *words: str) -> list[dict[str, float]]:
    asset, kind = DATA[recipe]
    start = ["model.path=asset:tiny-llama", f"data.path=asset:{asset}/train.{kind}", "data.sequence_tokens=96"]
    start += [f"data.validation_path=asset:{asset}/test.{kind}", "trainer.max_epochs=null", "optim.lr=1e-3"]
    start += ["trainer.global_batch_samples=16", "trainer.micro_batch_samples=8", "export.at_end=false"]
    directory = RunDirectory.create(compose(recipe, [*start, f"run.dir={folder}", *words]))
    assert fit(directory, Ranks()) == 0
    return [json.loads(line) for line in directory.metrics_file.read_text().splitlines()]


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", DATA)
def test_losses_equal_those_of_the_cpu(tmp_path: Path, recipe: str) -> None:
    words = ["trainer.precision=fp32", "trainer.max_steps=3", "optim=sgd", "optim.lr=0.1"]  # hides no error of scale
    here = losses(recipe, tmp_path / "gpu", *words)
    there = losses(recipe, tmp_path / "cpu", *words, "trainer.accelerator=cpu")
    for mine, other in zip(here, there, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", DATA)
def test_bf16_trains_and_the_loss_falls(tmp_path: Path, recipe: str) -> None:
    found = losses(recipe, tmp_path / "gpu", "trainer.precision=bf16", "trainer.max_steps=30")
    assert sum(row["loss"] for row in found[-5:]) < sum(row["loss"] for row in found[:5])
