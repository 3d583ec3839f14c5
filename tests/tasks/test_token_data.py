"""Rank 0 prepares; every rank has the same samples, or the same fault."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from trainer.conftest import Compose

from aitrain.dist.group import Group
from aitrain.dist.processes import run_ranks
from aitrain.dist.ranks import Ranks
from aitrain.errors import DataError
from aitrain.models.load import load_tokenizer, locate
from aitrain.recipe import freeze
from aitrain.tasks.token_data import cache_folder, data_files, prepared_tokens

ALONE = Group(Ranks(), "cpu")
TALK = """
import json, os, sys
from pathlib import Path
from aitrain.dist.group import Group
from aitrain.dist.ranks import detect
from aitrain.errors import AitrainError
from aitrain.models.load import load_tokenizer, locate
from aitrain.recipe import load
from aitrain.models.load import locate
from aitrain.tasks import token_data

ranks = detect()
group = Group(ranks, "cpu", timeout_min=1.0)
config = load(Path(sys.argv[1]) / "run.yaml")
tokenizer = load_tokenizer(locate(config.model))
if not ranks.is_first and "own" in sys.argv[2:]:
    unseen = os.environ["AITRAIN_CACHE"] + "/"  # rank 0's disk
    os.environ["AITRAIN_CACHE"] += "-of-another-node"
    is_dir = Path.is_dir
    Path.is_dir = lambda path: is_dir(path) and not str(path).startswith(unseen)
try:
    data = token_data.prepared_tokens(config, tokenizer, group)
except AitrainError as error:
    Path(sys.argv[1], f"{ranks.rank}.json").write_text(json.dumps([type(error).__name__, str(error)]))
    sys.exit(error.exit_code)
said = [[ids.tolist() for ids, _ in map(part.__getitem__, range(len(part)))] for part in (data.train, data.validation)]
Path(sys.argv[1], f"{ranks.rank}.json").write_text(json.dumps(said))
"""


def on_two_ranks(folder: Path, *words: str) -> tuple[int, list]:
    """Prepare on two ranks; return the exit code and what both say."""
    code = run_ranks([sys.executable, "-c", textwrap.dedent(TALK), str(folder), *words], 2)
    return code, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITRAIN_CACHE", "/scratch/cache")
    assert cache_folder() == Path("/scratch/cache/prepared")
    monkeypatch.setenv("AITRAIN_CACHE", "")
    assert cache_folder() == Path.home() / ".cache/aitrain/prepared"


def test_data_files(small: Compose, verses: Path) -> None:
    files = data_files(small())
    assert [source.files for source in files.all] == [(verses / "train.jsonl",), (verses / "validation.jsonl",)]
    assert data_files(small("data.validation_path=null")).validation is None


def test_samples_are_prepared_once(small: Compose, cache: Path) -> None:
    config = small()
    tokenizer = load_tokenizer(locate(config.model))
    first = prepared_tokens(config, tokenizer, ALONE)
    assert (len(first.train), len(first.validation or ())) == (12, 5)
    assert all(folder.is_relative_to(cache) for folder in first.folders)
    times = [file.stat().st_mtime_ns for folder in first.folders for file in folder.iterdir()]
    again = prepared_tokens(config, tokenizer, ALONE)
    assert [file.stat().st_mtime_ns for folder in again.folders for file in folder.iterdir()] == times
    for number in range(12):
        assert np.array_equal(first.train[number][0], again.train[number][0])


@pytest.mark.parametrize("words", [[], ["own"]], ids=["shared disk", "own disks"])
def test_two_ranks_have_the_same_samples(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("AITRAIN_CACHE", str(tmp_path / "cache"))
    freeze(small(), tmp_path / "run.yaml")
    code, (first, second) = on_two_ranks(tmp_path, *words)
    assert code == 0
    assert first == second and [len(part) for part in first] == [12, 5]
    assert (tmp_path / "cache-of-another-node").exists() == bool(words)


def test_a_refusal_is_the_same_on_every_rank(small: Compose, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"messages": [\n')
    freeze(small(f"data.path={tmp_path}/bad.jsonl", "data.validation_path=null"), tmp_path / "run.yaml")
    code, (first, second) = on_two_ranks(tmp_path)
    assert code == DataError.exit_code
    assert first == second and first[0] == "DataError"
    assert "bad.jsonl" in first[1]
