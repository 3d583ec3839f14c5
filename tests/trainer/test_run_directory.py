"""The run directory is made once, never taken over, and each step stands in its log once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aitrain.errors import AitrainError, RecipeError
from aitrain.trainer import run_directory
from aitrain.trainer.run_directory import RunDirectory, whole_records

from .conftest import Compose


@pytest.fixture
def made(small: Compose, tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(small(f"run.dir={tmp_path}/a/run"))


def test_what_is_frozen_is_read(small: Compose, tmp_path: Path) -> None:
    config = small(f"run.dir={tmp_path}/a/run")
    made = RunDirectory.create(config)
    assert made.path == tmp_path / "a/run" and made.logs.is_dir()
    assert RunDirectory.open(made.path).config() == config
    assert made.is_untouched and made.events() == 0


def test_name_and_time_when_no_place_is_given(small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small("run.name=mine")
    monkeypatch.chdir(tmp_path)
    directory = RunDirectory.create(config)
    assert directory.path.parent == tmp_path / "runs" and directory.path.name.startswith("mine-2")
    assert directory.config().run.dir == str(directory.path)


def test_a_place_that_is_taken_is_refused(small: Compose, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("kept")
    with pytest.raises(RecipeError, match=rf"run\.dir={tmp_path}/run exists already: .*aitrain resume {tmp_path}/run"):
        RunDirectory.create(small(f"run.dir={tmp_path}/run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


def test_a_directory_of_a_start_that_was_killed_may_be_taken(small: Compose, tmp_path: Path) -> None:
    config, place = small(f"run.dir={tmp_path}/run"), tmp_path / "run"
    (place / "logs").mkdir(parents=True)
    assert RunDirectory.is_blank(place)
    with pytest.raises(RecipeError, match="exists already"):
        RunDirectory.create(config)
    assert RunDirectory.create(config, over_blank=True).config() == config
    assert not RunDirectory.is_blank(place) and not RunDirectory.is_blank(tmp_path / "none")
    with pytest.raises(RecipeError, match="exists already"):
        RunDirectory.create(config, over_blank=True)


def test_a_log_makes_a_directory_worth_keeping(tmp_path: Path) -> None:
    (tmp_path / "run/logs").mkdir(parents=True)
    (tmp_path / "run/logs/slurm-1.out").touch()
    assert not RunDirectory.is_blank(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert not RunDirectory.is_blank(tmp_path / "link")


def test_whether_a_run_is_finished(made: RunDirectory) -> None:
    assert not made.is_finished and made.last_of("submitted") == {}
    for kind, finished in (
        ("submitted", False),
        ("started", False),
        ("finished", True),
        ("evaluated", True),
        ("resumed", False),
        ("finished", True),
        ("failed", False),
    ):
        made.event(kind, job=kind)
        assert made.is_finished is finished
    assert made.last_of("submitted", "started")["job"] == "started"
    with open(made.events_file, "a") as file:
        file.write('{"time": "cut o')  # what a crash leaves
    assert made.last_of("failed")["job"] == "failed"


def test_a_place_below_a_file_is_refused(small: Compose, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot be created .* give a folder you may write to"):
        RunDirectory.create(small(f"run.dir={tmp_path}/file/run"))


def test_half_a_directory_is_taken_away(small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_directory, "freeze", full)
    with pytest.raises(AitrainError, match="cannot be written .*No space left.* give another run.dir"):
        RunDirectory.create(small(f"run.dir={tmp_path}/run"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no"):
        with pytest.raises(RecipeError, match=r"is not a run directory \(no run\.yaml\)"):
            RunDirectory.open(path)


def test_checkpoints_stand_in_the_run_or_where_the_recipe_says(small: Compose, made: RunDirectory) -> None:
    assert made.checkpoints(made.config()) == made.path / "checkpoints"
    assert made.checkpoints(small("checkpoint.path=/scratch/mine")) == Path("/scratch/mine")


def test_events_are_lines_with_time_and_facts(made: RunDirectory) -> None:
    made.event("started", ranks=2)
    made.event("answers", answers=[{"prompt": "p", "answer": "Grüße\nzwei"}])
    first, second = map(json.loads, made.events_file.read_text(encoding="utf-8").splitlines())
    assert (first["event"], first["ranks"]) == ("started", 2)
    assert second["answers"][0]["answer"] == "Grüße\nzwei"
    assert first["time"][10] == "T" and made.events() == 2


def test_records_of_steps_done_again_are_dropped(made: RunDirectory) -> None:
    for step in range(1, 6):
        made.metrics({"step": step, "loss": 1.0 / step, "mfu": None})
    kept = made.metrics_file.read_text().splitlines()[:3]
    made.forget_steps_after(3)
    assert made.metrics_file.read_text().splitlines() == kept
    made.metrics({"step": 4})
    assert [json.loads(line)["step"] for line in made.metrics_file.read_text().splitlines()] == [1, 2, 3, 4]
    assert not made.is_untouched


def test_half_a_line_of_a_killed_run_is_dropped(made: RunDirectory) -> None:
    made.metrics({"step": 1})
    with open(made.metrics_file, "a") as file:
        file.write('{"step": 2, "los')
    made.forget_steps_after(9)
    made.metrics({"step": 2})
    assert made.metrics_file.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_nothing_to_forget_leaves_the_file_alone(made: RunDirectory) -> None:
    made.forget_steps_after(3)
    assert not made.metrics_file.exists()
    made.metrics({"step": 1})
    before = made.metrics_file.stat()
    made.forget_steps_after(3)
    assert made.metrics_file.stat() == before


def test_a_failure_is_noted_where_it_can_be(made: RunDirectory) -> None:
    made.note_failure("disk full")
    assert json.loads(made.events_file.read_text())["error"] == "disk full"
    made.events_file.unlink()
    made.events_file.symlink_to("/dev/full")  # every write to it says that there is no space
    made.note_failure("again")
    with pytest.raises(AitrainError, match="No space left on device.*aitrain resume"):
        made.event("started")


def test_a_run_with_a_checkpoint_is_not_untouched(made: RunDirectory) -> None:
    (made.path / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert not made.is_untouched


def test_a_line_that_a_crash_has_cut_harms_no_other(small: Compose, tmp_path: Path) -> None:
    directory = RunDirectory.create(small(f"run.dir={tmp_path}/run"))
    for step in (1, 2):
        directory.metrics({"step": step, "loss": 1.0})
        directory.event("checkpoint", step=step)
    for file in (directory.metrics_file, directory.events_file):
        with open(file, "a") as out:
            out.write('{"step": 3, "event": "checkpo')
    directory.metrics({"step": 3, "loss": 1.0})
    directory.event("finished", step=3)
    assert [record["step"] for record in whole_records(directory.metrics_file)] == [1, 2, 3]
    assert directory.is_finished and len(directory.all_of("checkpoint")) == 2
    directory.forget_steps_after(2)
    assert directory.metrics_file.read_text().splitlines() == ['{"step": 1, "loss": 1.0}', '{"step": 2, "loss": 1.0}']
    directory.amend_last_metrics(2, {"val_loss": 0.5})
    assert whole_records(directory.metrics_file)[-1] == {"step": 2, "loss": 1.0, "val_loss": 0.5}


def test_facts_stay_when_the_configuration_is_written_anew(small: Compose, tmp_path: Path) -> None:
    directory = RunDirectory.create(small(f"run.dir={tmp_path}/run"))
    assert directory.facts() == {}
    directory.freeze(directory.config(), {"tokenizer": "abc"})
    directory.freeze(small(f"run.dir={tmp_path}/run", "trainer.max_steps=9"))
    assert directory.facts() == {"tokenizer": "abc"} and directory.config().trainer.max_steps == 9
