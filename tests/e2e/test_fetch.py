"""A recipe with the name of a model on a hub: fetched once, locked by content, verified, trained without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub import COMMIT, serve
from tiny import CONTEXT_TOKENS

from aitrain.recipe import load

NAME = "company/tiny"
WORDS = ["sft_full", "data.validation_samples=null"]
WORDS += [
    f"model.path={NAME}",
    f"data.sequence_tokens={CONTEXT_TOKENS}",
    "trainer.accelerator=cpu",
]
WORDS += ["trainer.precision=fp32", "trainer.max_steps=2", "trainer.max_epochs=null", "export.at_end=false"]
WORDS += ["trainer.global_batch_samples=4"]


def aitrain(*words: str, endpoint: str = "http://127.0.0.1:9", code: int = 0) -> str:
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-m", "aitrain", *words], capture_output=True, text=True, env=env)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def place(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AITRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_data, tmp_path / "chats.jsonl")
    return tmp_path


def test_fetched_once_then_trained_without_a_network(place: Path, tiny_model: Path) -> None:
    words = [*WORDS, "data.path=chats.jsonl"]
    assert f"aitrain fetch RECIPE model.path={NAME}" in aitrain("check", *words, "--no-data", code=2)
    with serve(NAME, tiny_model) as (address, asked):
        said = aitrain("fetch", *words, endpoint=address)
        assert f"{NAME} is commit {COMMIT[:12]}" in said and asked
        lock = json.loads((place / "aitrain.lock").read_text())["models"][NAME]
        assert lock["commit"] == COMMIT
        before = len(asked)
        aitrain("train", *words, "run.dir=run", endpoint=address)
        assert len(asked) == before, "training asked the hub"
    config = load(place / "run/run.yaml")
    folder = place / "cache/store" / lock["content"]
    assert config.model.path == str(folder), "the run knows its content, not only a name"
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == sorted(
        path.name for path in tiny_model.iterdir() if path.suffix in (".json", ".safetensors", ".jinja")
    )
    assert not list((place / "cache/store").glob(".fetch-*"))

    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    said = aitrain("train", *words, "run.dir=other", code=2)
    assert "differs from what was fetched from company/tiny: config.json was changed" in said
    (folder / "generation_config.json").unlink()
    assert "generation_config.json is missing" in aitrain("train", *words, "run.dir=other", code=2)
    shutil.rmtree(folder)
    assert "is not in" in aitrain("train", *words, "run.dir=other", code=2)
    assert not (place / "other").exists()


def test_a_newer_commit_is_another_content(place: Path, tiny_model: Path) -> None:
    words = [*WORDS, "data.path=chats.jsonl"]
    other = place / "other-model"
    shutil.copytree(tiny_model, other)
    with serve(NAME, tiny_model) as (address, _):
        aitrain("fetch", *words, endpoint=address)
        first = json.loads((place / "aitrain.lock").read_text())["models"][NAME]["content"]
        aitrain("fetch", *words, endpoint=address)
        assert json.loads((place / "aitrain.lock").read_text())["models"][NAME]["content"] == first
    (other / "README.md").write_text("more")
    with serve(NAME, other) as (address, _):
        aitrain("fetch", *words, endpoint=address)
    second = json.loads((place / "aitrain.lock").read_text())["models"][NAME]["content"]
    assert second != first and {path.name for path in (place / "cache/store").iterdir()} == {first, second}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["data.path=chats.jsonl"], 2, "model.path=company/tiny cannot be fetched"),
        (["data.path=chats.jsonl", "model.path=no/such"], 2, "model.path=no/such cannot be fetched"),
        (["data.path=none.jsonl", "model.path=asset:tiny-llama"], 3, "data.path=none.jsonl does not exist"),
    ],
)
def test_what_cannot_be_fetched(place: Path, words: list[str], code: int, says: str) -> None:
    assert says in aitrain("fetch", *WORDS, *words, code=code)
    assert not (place / "aitrain.lock").exists() and not list(place.glob("cache/store/*"))


def test_local_things_need_no_fetching(place: Path) -> None:
    said = aitrain("fetch", *WORDS, "model.path=asset:tiny-llama", "data.path=asset:verses-en-nl/train.jsonl")
    assert "tiny-llama" in said and not (place / "aitrain.lock").exists()


def test_a_broken_lock_file_is_told(place: Path) -> None:
    (place / "aitrain.lock").write_text("{")
    assert "aitrain.lock cannot be read" in aitrain("check", *WORDS, "data.path=chats.jsonl", "--no-data", code=2)
