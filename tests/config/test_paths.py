"""Relative paths become absolute; names on a hub and assets stay."""

from pathlib import Path

import pytest

from aitrain.config.paths import absolute_paths
from aitrain.recipe import compose


def test_every_path_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    (tmp_path / "models/tiny").mkdir(parents=True)
    words = ["model.path=models/tiny", "data.path=~/train.jsonl", "data.validation_path=../held.jsonl"]
    words += ["run.dir=runs/a", "checkpoint.path=~/kept", "model.chat_template=chat.jinja"]
    found = absolute_paths(compose("sft_full", words))
    assert found.model.path == f"{tmp_path}/models/tiny"
    assert found.data.path == "/home/ann/train.jsonl"
    assert found.data.validation_path == f"{tmp_path.parent}/held.jsonl"
    assert found.run.dir == f"{tmp_path}/runs/a" and found.checkpoint.path == "/home/ann/kept"
    assert found.model.chat_template == f"{tmp_path}/chat.jinja"
    assert absolute_paths(found) == found


@pytest.mark.parametrize("name", ["asset:tiny-llama", "org/model", "gpt2"])
def test_names_stay(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"model.path={name}", "data.path=asset:verses-en-nl/train.jsonl", "model.allow_network=true"]
    found = absolute_paths(compose("sft_full", words))
    assert found.model.path == name and found.data.path == "asset:verses-en-nl/train.jsonl"
    assert found.run.dir is None and found.checkpoint.path is None


@pytest.mark.parametrize("name", ["./org/model", "a.gguf", "~/m"])
def test_what_looks_like_a_file_is_one(name: str) -> None:
    found = absolute_paths(compose("sft_full", [f"model.path={name}", "data.path=a.jsonl"]))
    assert found.model.path.startswith("/")
