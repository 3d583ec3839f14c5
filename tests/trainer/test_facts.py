"""A run knows its model and its data again, and names the first difference."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from aitrain.errors import RecipeError
from aitrain.models.assets import resolve
from aitrain.recipe import load_facts
from aitrain.trainer.evaluation import evaluate_run
from aitrain.trainer.export import Wanted, export
from aitrain.trainer.facts import first_difference
from aitrain.trainer.resume_options import ResumeOptions
from aitrain.trainer.run_directory import RunDirectory
from aitrain.trainer.start import resume

from .conftest import Compose, Ended, run


@pytest.fixture
def own(small: Compose, verses: Path, tmp_path: Path) -> Ended:
    """A run over files of its own, which may be changed."""
    model = shutil.copytree(resolve("asset:tiny-llama"), tmp_path / "model")
    for name in ("train.jsonl", "validation.jsonl"):
        shutil.copy(verses / name, tmp_path / name)
    words = [f"model.path={model}", f"data.path={tmp_path}/train.jsonl", f"run.dir={tmp_path}/run"]
    words += [f"data.validation_path={tmp_path}/validation.jsonl", "schedule=constant", "trainer.max_steps=2"]
    return run(small(*words, "checkpoint.keep=9", "checkpoint.every_steps=1"))


def test_they_stand_in_the_run_and_in_every_checkpoint(own: Ended) -> None:
    facts = load_facts(own.directory.config_file)
    assert set(facts) == {"model", "tokenizer", "chat_template", "data"}
    assert facts["data"]["train"]["samples"] == 12 and facts["data"]["validation"]["samples"] == 5
    for step in (1, 2):
        manifest = json.loads((own.directory.path / f"checkpoints/step-{step:08d}/manifest.json").read_text())
        assert manifest["state"]["facts"] == facts


def change(folder: Path, what: str) -> str:
    """Change one input; return what must be said."""
    if what == "samples":
        lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
        (folder / "train.jsonl").write_text("".join(lines[:10]))
        return "train.jsonl: 10 samples now, 12 when the run started"
    if what == "content":
        text = (folder / "train.jsonl").read_text()
        (folder / "train.jsonl").write_text(text.replace("the", "teh", 1))
        return "train.jsonl has changed since the run started, although"
    if what == "held out":
        (folder / "validation.jsonl").write_text("".join((folder / "validation.jsonl").open().readlines()[:3]))
        return "validation.jsonl: 3 samples now, 5 when the run started"
    if what == "model":
        file = folder / "model/model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        return "model.safetensors has changed since the run started"
    if what == "template":
        file = folder / "model/chat_template.jinja"
        file.write_text(file.read_text() + " ")
        return "the chat template has changed since the run started"
    assert what == "tokenizer"
    file = folder / "model/tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"][0]["lstrip"] = True
    file.write_text(json.dumps(content))
    return "the tokenizer has changed since the run started"


@pytest.mark.parametrize("what", ["samples", "content", "held out", "model", "template", "tokenizer"])
def test_resume_refuses_and_names_it(own: Ended, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    says = change(tmp_path, what)
    before = own.directory.config_file.read_text(), own.directory.events()
    monkeypatch.chdir("/")
    with pytest.raises(RecipeError, match=says):
        resume(own.directory.path, ["trainer.max_steps=3"])
    assert (own.directory.config_file.read_text(), own.directory.events()) == before, "the run is as it was"
    assert resume(own.directory.path, ["trainer.max_steps=3"], ResumeOptions(changed_inputs=True)) == 0
    # what is there now is what counts from now on
    assert resume(own.directory.path, ["trainer.max_steps=4"]) == 0


@pytest.mark.parametrize("what", ["model", "template"])
def test_export_and_evaluate_refuse_too(own: Ended, tmp_path: Path, what: str) -> None:
    says = change(tmp_path, what)
    with pytest.raises(RecipeError, match=says):
        export(own.directory.path, tmp_path / "out", Wanted())
    assert not (tmp_path / "out").exists()
    with pytest.raises(RecipeError, match=says):
        evaluate_run(own.directory.path, None, None, "newest")
    export(own.directory.path, tmp_path / "out", Wanted(changed_inputs=True))
    evaluate_run(own.directory.path, None, None, "newest", changed_inputs=True)


def test_evaluate_compares_the_runs_own_data_only(own: Ended, tmp_path: Path) -> None:
    says = change(tmp_path, "held out")
    with pytest.raises(RecipeError, match=says):
        evaluate_run(own.directory.path, None, None, "newest")
    evaluate_run(own.directory.path, str(tmp_path / "validation.jsonl"), None, "newest")


def test_a_run_of_before_such_facts_goes_on(own: Ended) -> None:
    for manifest in own.directory.path.glob("checkpoints/*/manifest.json"):
        content = json.loads(manifest.read_text())
        del content["state"]["facts"]
        manifest.write_text(json.dumps(content))
    text = own.directory.config_file.read_text()
    own.directory.config_file.write_text(text[: text.index("facts:")])
    assert RunDirectory(own.directory.path).facts() == {}
    assert resume(own.directory.path, ["trainer.max_steps=3"]) == 0


def test_every_difference_has_its_sentence(small: Compose) -> None:
    then: dict[str, Any] = {
        "model": {"config.json": "1", "a.safetensors": "2"},
        "tokenizer": "3",
        "chat_template": None,
        "data": {"train": {"file": "a.jsonl", "sha256": "4", "samples": 5, "units": 6}},
    }
    config = small()
    assert first_difference(then, copy.deepcopy(then), config) is None
    assert first_difference({}, then, config) is None and first_difference(then, {}, config) is None
    for path, value, says in (
        (("model", "config.json"), "9", "config.json has changed since the run started"),
        (("model", "b.safetensors"), "9", "b.safetensors has been added"),
        (("tokenizer",), "9", "the tokenizer has changed"),
        (("chat_template",), "9", "the chat template has changed"),
        (("data", "train", "units"), 9, "a.jsonl: 9 tokens now, 6 when the run started"),
    ):
        now = copy.deepcopy(then)
        inner = now
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        told = first_difference(then, now, config)
        assert told is not None and says in told
    del now["model"]["config.json"]
    assert "config.json has been removed" in str(first_difference(then, now, config))
