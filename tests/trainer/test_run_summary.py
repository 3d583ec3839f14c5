"""The account at the end says what came of the run and where it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aitrain.errors import EXIT_DONE, EXIT_REQUEUE
from aitrain.tasks.metric import Metric
from aitrain.trainer.progress import Progress
from aitrain.trainer.run_directory import RunDirectory
from aitrain.trainer.run_summary import account

from .conftest import Compose, Ended


def session(small: Compose, path: Path, **change: Any) -> Any:
    progress = Progress(step=4, samples=16, units=12_345, seconds=61.0)
    start = {
        "config": small(),
        "directory": RunDirectory(path),
        "progress": progress,
        "total_steps": 9,
        "task": SimpleNamespace(primary=Metric(), unit="tokens", talks=False, predicts=False),
    }
    return SimpleNamespace(
        **{**start, "before": None, "after": None, "picture": None, "curves": None, "baselines": {}, **change}
    )


def test_a_real_run_tells_its_story(trained: Ended) -> None:
    events = [json.loads(line) for line in trained.directory.events_file.read_text().splitlines()]
    before, after = (
        next(e for e in events if e["event"] == "evaluated" and e["step"] == s)["val_loss"] for s in (0, 4)
    )
    said, path = trained.said, trained.directory.path
    assert (
        f"held-out loss  before {before:.4f}  after {after:.4f} (step 4, {100 * (after - before) / before:+.1f} %)"
        in said
    )
    assert "prompt  Translate to Dutch: light\n  before  " in said and "\n  after   " in said
    assert said.endswith(
        f"curves  {path}/report/curves.svg\nrun     {path}\nadapter {path}/export/adapter\n"
        f"model   {path}/export/model\ntalk    aitrain chat {path}\n"
    )
    assert "\r" not in said, "a log has no moving line"


def test_a_stopped_run_says_how_to_go_on(small: Compose, tmp_path: Path) -> None:
    stopped = session(small, tmp_path, stopper=SimpleNamespace(reason="SIGTERM"))
    assert account(stopped, EXIT_REQUEUE) == [
        "",
        "4 of 9 steps, 12,345 tokens in 1:01 min",
        f"run     {tmp_path}",
        f"Interrupted by SIGTERM after saving step 4. Resume with: aitrain resume {tmp_path}",
    ]


def test_the_command_that_uses_the_model_comes_last(small: Compose, tmp_path: Path) -> None:
    task = SimpleNamespace(primary=Metric(), unit="images", talks=False, predicts=True)
    assert account(session(small, tmp_path, task=task), EXIT_DONE)[-1] == f"predict aitrain predict {tmp_path} FILE"
    task.talks = True
    assert account(session(small, tmp_path, task=task), EXIT_DONE)[-1] == f"talk    aitrain chat {tmp_path}"


def test_a_best_step_before_the_last_is_told(small: Compose, tmp_path: Path) -> None:
    measured = Progress(step=4, validation={"0": 4.0, "2": 2.0, "4": 3.0}, best=2.0, best_step=2)
    lines = account(session(small, tmp_path, progress=measured), EXIT_DONE)
    assert "held-out loss  before 4.0000  after 3.0000 (step 4, -25.0 %)" in lines
    assert "               best   2.0000 (step 2)" in lines


def test_without_export_there_is_no_model_to_name(small: Compose, tmp_path: Path) -> None:
    config = small("export.at_end=false")
    assert account(session(small, tmp_path, config=config), EXIT_DONE)[-1] == f"run     {tmp_path}"
    full = account(session(small, tmp_path), EXIT_DONE)
    assert full[-1] == f"model   {tmp_path}/export/model" and not any(line.startswith("adapter") for line in full)


def test_who_is_best_is_said(small: Compose, tmp_path: Path) -> None:
    def best(metric: Metric, ours: float, **others: float) -> list[str]:
        task = SimpleNamespace(primary=metric, unit="windows", sentence=str, talks=False, predicts=False)
        simple = {name.replace("_", " "): {metric.name: value} for name, value in others.items()}
        measured = Progress(step=4, validation={"0": 9.0, "4": ours})
        said = account(session(small, tmp_path, progress=measured, task=task, baselines=simple), EXIT_DONE)
        return [line for line in said if line.startswith("best by")]

    mase, score = Metric("mase"), Metric("f1_macro", greater_is_better=True)
    assert best(mase, 0.8, last_season=1.1, trees=0.9) == ["best by mase: the trained model (0.8000; trees: 0.9000)"]
    assert best(mase, 1.0, last_season=1.1, trees=0.9) == ["best by mase: trees (0.9000; the trained model: 1.0000)"]
    assert best(score, 0.5, always_a=0.6) == ["best by f1 macro: always a (0.6000; the trained model: 0.5000)"]
    assert best(score, 0.5) == []
