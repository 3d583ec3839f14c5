"""A start that ends badly takes away what it made, and keeps what is worth keeping."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from aitrain.errors import DataError, RecipeError
from aitrain.trainer import start
from aitrain.trainer.run_directory import RunDirectory
from aitrain.trainer.start import Start, _tidied

from .conftest import Compose, Ended


@pytest.fixture
def made(small: Compose, tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(small(f"run.dir={tmp_path}/run"))


def events(directory: RunDirectory) -> list[dict]:
    return [json.loads(line) for line in directory.events_file.read_text().splitlines()]


@pytest.mark.parametrize("fault", [RecipeError("wrong"), DataError("bad"), KeyboardInterrupt(), SystemExit(2)])
def test_a_new_run_without_a_step_goes(made: RunDirectory, fault: BaseException) -> None:
    with pytest.raises(type(fault)), _tidied(made, Start(made.path, is_new=True)):
        made.event("started")
        raise fault
    assert not made.path.exists()


@pytest.mark.parametrize("fault", [ZeroDivisionError("ours"), SystemExit(1)])
def test_after_a_bug_of_ours_what_was_written_stays(made: RunDirectory, fault: BaseException) -> None:
    with pytest.raises(type(fault)), _tidied(made, Start(made.path, is_new=True)):
        made.event("started")
        raise fault
    assert [event["event"] for event in events(made)] == ["started", "failed"]


def test_a_run_with_steps_stays_and_notes_why(made: RunDirectory) -> None:
    with pytest.raises(DataError), _tidied(made, Start(made.path, is_new=True)):
        made.event("started")
        made.metrics({"step": 1})
        raise DataError("line 3 is broken")
    assert events(made)[-1]["error"] == "line 3 is broken"


def test_a_resumed_run_stays(made: RunDirectory) -> None:
    with pytest.raises(RecipeError), _tidied(made, Start(made.path, is_new=False)):
        raise RecipeError("it is done already")
    assert made.config_file.is_file() and not made.events_file.exists(), "nothing happened, so there is nothing to note"


def test_a_good_end_changes_nothing(made: RunDirectory) -> None:
    with _tidied(made, Start(made.path, is_new=True)):
        made.event("finished")
    assert [event["event"] for event in events(made)] == ["finished"]


def test_sigterm_before_training_has_handlers_leaves_nothing(made: RunDirectory) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, _tidied(made, Start(made.path, is_new=True)):
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143 and not made.path.exists()
    assert signal.getsignal(signal.SIGTERM) == before


WORDS = [
    "trainer.max_epochs=null",
    "trainer.max_steps=2",
    "trainer.global_batch_samples=4",
    "optim.lr=1e-3",
    "schedule=constant",
]


def words(verses: Path, run: Path) -> list[str]:
    data = [f"data.path={verses}/train.jsonl", "data.sequence_tokens=256", "model.path=asset:tiny-llama"]
    device = ["trainer.accelerator=cpu", "trainer.precision=fp32", "export.at_end=false", f"run.dir={run}"]
    return [*WORDS, *data, *device, "data.validation_samples=null"]


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher's variables, whoever runs the tests."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("nobody")
def test_train_makes_a_run_and_resume_goes_on_with_it(verses: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert start.train("sft_full", words(verses, run)) == 0
    assert start.resume(run, ["trainer.max_steps=3"]) == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    kinds = [event["event"] for event in events(RunDirectory(run))]
    assert kinds == ["started", "checkpoint", "finished", "changed", "resumed", "checkpoint", "finished"]
    assert RunDirectory(run).config().trainer.max_steps == 3


@pytest.mark.usefixtures("nobody")
def test_a_refused_recipe_makes_nothing(verses: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.path=/no/model"):
        start.train("sft_full", [*words(verses, tmp_path / "run"), "model.path=/no/model"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nobody")
def test_a_refused_resume_changes_nothing(trained: Ended) -> None:
    before = trained.directory.config_file.read_bytes(), trained.directory.events()
    with pytest.raises(RecipeError, match="seed"):
        start.resume(trained.directory.path, ["seed=9"])
    assert (trained.directory.config_file.read_bytes(), trained.directory.events()) == before


@pytest.mark.usefixtures("nobody")
def test_or_resume_needs_a_place_that_a_restart_can_find(verses: Path, tmp_path: Path) -> None:
    given = [word for word in words(verses, tmp_path / "run") if not word.startswith("run.dir")]
    with pytest.raises(RecipeError, match="--or-resume needs run.dir"):
        start.train_or_resume("sft_full", given)
    with pytest.raises(RecipeError, match=r"none is not a run directory \(no run\.yaml\)"):
        start.train_or_resume(str(tmp_path / "none/run.yaml"), [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nobody")
def test_a_frozen_configuration_is_no_recipe(trained: Ended) -> None:
    with pytest.raises(RecipeError, match="is the frozen configuration of a run, not a recipe: continue that run with"):
        start.train(str(trained.directory.config_file), [])


@pytest.mark.usefixtures("nobody")
def test_or_resume_does_not_take_over_what_is_no_run(verses: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine").write_text("kept")
    with pytest.raises(RecipeError, match="exists already"):
        start.train_or_resume("sft_full", words(verses, tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


@pytest.mark.usefixtures("nobody")
def test_or_resume_after_a_start_that_was_killed_and_then_longer(verses: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    assert start.train_or_resume("sft_full", words(verses, run)) == 0
    assert start.train_or_resume("sft_full", [*words(verses, run), "trainer.max_steps=3"]) == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    before = RunDirectory(run).events()
    assert start.train_or_resume(str(run / "run.yaml"), []) == 0, "finished: done"
    assert RunDirectory(run).events() == before
