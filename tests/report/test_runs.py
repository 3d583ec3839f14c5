"""The list of runs: steps, loss and state from the files of a run."""

import json
from pathlib import Path

import pytest

from aitrain.errors import AitrainError
from aitrain.report.runs import runs, summary


def make(folder: Path, metrics: list[dict[str, object]], events: list[str], tail: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text("seed: 0\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics) + tail)
    (folder / "events.jsonl").write_text("".join(json.dumps({"event": event}) + "\n" for event in events))
    return folder


def test_a_run_is_read_from_its_last_whole_lines(tmp_path: Path) -> None:
    run = make(
        tmp_path / "a", [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}], ["started", "finished"], '{"step": 3, "lo'
    )
    found = summary(run)
    assert (found.steps, found.loss, found.state) == (2, 2.5, "finished")


@pytest.mark.parametrize(
    ("events", "state"),
    [
        (["started"], "running or interrupted"),
        (["started", "checkpoint", "stopped", "waiting"], "stopped, can be resumed"),
        (["started", "finished", "evaluated"], "finished"),
        (["started", "waiting", "resumed", "checkpoint"], "running or interrupted"),
        ([], "not started"),
    ],
)
def test_the_last_event_tells_the_state(tmp_path: Path, events: list[str], state: str) -> None:
    found = summary(make(tmp_path / "a", [], events))
    assert (found.state, found.steps, found.loss) == (state, 0, None)


def test_only_run_directories_are_listed(tmp_path: Path) -> None:
    make(tmp_path / "b", [], [])
    (tmp_path / "no-run").mkdir()
    assert [run.path.name for run in runs(tmp_path)] == ["b"]
    assert [run.path.name for run in runs(tmp_path / "b")] == ["b"]
    with pytest.raises(AitrainError, match="is not a folder"):
        runs(tmp_path / "none")
