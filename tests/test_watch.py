"""Runs that no queue knows: their table, their state, their logs, and how to stop them on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aitrain import watch
from aitrain.errors import AitrainError
from aitrain.launch.slurm import QueuedJob


def make(folder: Path, *events: dict[str, Any], steps: int = 3) -> Path:
    (folder / "logs").mkdir(parents=True)
    (folder / "run.yaml").write_text("seed: 0\n")
    metrics = [{"step": step, "loss": 2.0, "tokens_per_s": 1000.0, "step_time_s": 1.0} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events))
    return folder


SUBMITTED = {"event": "submitted", "job": "12", "cluster": "lumi_g"}
STARTED = {"event": "started", "steps": 10}


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> list[QueuedJob]:
    """A queue that the test fills; Slurm itself is asked in tests/e2e/test_slurm.py."""
    jobs: list[QueuedJob] = []
    monkeypatch.setattr(watch.Slurm, "jobs", lambda *_: jobs)
    return jobs


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (("RUNNING", "None"), "running on nid[1-2]"),
        (("PENDING", "Priority"), "waiting in the queue (Priority)"),
        (("COMPLETING", "None"), "completing"),
        (None, "interrupted (job 12 is no longer in the queue)"),
    ],
)
def test_the_queue_knows_better_than_the_events(
    job: tuple[str, str] | None, says: str, queue: list[QueuedJob], tmp_path: Path
) -> None:
    make(tmp_path / "a", SUBMITTED, STARTED)
    if job is not None:
        queue.append(QueuedJob("12", *job, "N/A", "1:00:00", "nid[1-2]", "standard-g", 5))
    assert says in watch.runs_text(tmp_path)


def test_without_slurm_the_files_are_shown_and_the_gap_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    make(tmp_path / "a", SUBMITTED, STARTED)
    text = watch.runs_text(tmp_path)
    assert "running or interrupted" in text
    assert "The queue could not be read: squeue is not found here" in text
    assert "could not be read" in watch.status_text(tmp_path / "a")


def test_a_status_in_full(queue: list[QueuedJob], tmp_path: Path) -> None:
    trouble = {"event": "rank_failed", "reason": "rank 3 on nid1 was killed"}
    events = [
        SUBMITTED,
        {"event": "launched", "job": "12", "automatic": False},
        STARTED,
        {"event": "checkpoint", "step": 2},
    ]
    run = make(tmp_path / "a", *events, trouble, {"event": "launched", "job": "12", "automatic": True})
    (run / "job.sbatch").write_text("")
    (run / "logs/rank-0.log").write_text("x")
    assert watch.status_text(run).splitlines() == [
        f"{run}: interrupted (job 12 is no longer in the queue)",
        "  job         12 on lumi_g",
        "  step        3 of 10, loss 2.0000, 1,000 tokens/s",
        "  checkpoint  step 2",
        "  restarts    1",
        f"  log         {run}/logs/rank-0.log",
        f"  continue    sbatch {run}/job.sbatch",
    ]


def test_the_runs_of_a_sweep_in_order_with_what_differs(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        make(tmp_path / str(number), STARTED, {"event": "evaluated", "val_loss": 2.5 + number}, {"event": "finished"})
    (tmp_path / "sweep.json").write_text(json.dumps([f"seed={number}" for number in range(11)]))
    lines = watch.runs_text(tmp_path).splitlines()
    assert [line.split()[-1] for line in lines[2:]] == ["seed=0", "seed=2", "seed=10"]
    assert f"{tmp_path}/0 (best)" in lines[2] and "2.5000 loss" in lines[2] and "(best)" not in lines[3]


def test_the_best_run_is_the_one_with_most_where_more_is_better(tmp_path: Path) -> None:
    for number, value in enumerate((0.5, 0.9)):
        started = STARTED | {"metric": "macro_f1", "greater_is_better": True}
        make(tmp_path / str(number), started, {"event": "evaluated", "val_macro_f1": value}, {"event": "finished"})
    (tmp_path / "sweep.json").write_text(json.dumps(["optim.lr=1", "optim.lr=2"]))
    assert f"{tmp_path}/1 (best)" in watch.runs_text(tmp_path) and "0.9000 macro f1" in watch.runs_text(tmp_path)


def test_runs_of_any_folder_say_in_which_keys_they_differ(tmp_path: Path) -> None:
    for name, rate in (("a", "1e-3"), ("b", "2e-3")):
        run = make(tmp_path / name, STARTED)
        (run / "run.yaml").write_text(f"seed: 0\nrun: {{name: {name}}}\noptim: {{option: adamw, lr: {rate}}}\n")
        other = "{option: none}" if name == "a" else "{option: lora, rank: 8}"
        (run / "run.yaml").write_text((run / "run.yaml").read_text() + f"adapter: {other}\n")
    lines = watch.runs_text(tmp_path).splitlines()
    assert [line.split()[-2:] for line in lines[2:]] == [
        ["adapter=none", "optim.lr=1e-3"],
        ["adapter=lora", "optim.lr=2e-3"],
    ]


def test_a_log_is_followed_until_the_run_is_over(tmp_path: Path) -> None:
    run = make(tmp_path / "a", STARTED)
    log = run / "logs/rank-0.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    script = "import sys; from pathlib import Path; from aitrain.watch import show_log; "
    script += "show_log(Path(sys.argv[1]), None, True)"
    follower = subprocess.Popen([sys.executable, "-c", script, str(run)], stdout=subprocess.PIPE, text=True)
    assert follower.stdout is not None and follower.stdout.readline() == "line 80\n"
    with open(log, "a") as file:
        file.write("the end\n")
    with open(run / "events.jsonl", "a") as file:
        file.write(json.dumps({"event": "finished"}) + "\n")
    assert follower.communicate(timeout=20)[0].splitlines()[-1] == "the end"
    assert follower.returncode == 0


def test_a_run_on_this_machine_is_stopped_by_its_process(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "aitrain"])
    time.sleep(0.1)
    run = make(tmp_path / "a", {**STARTED, "host": socket.gethostname(), "pid": process.pid})
    assert "Asked it to save" in watch.stop(run, now=False)
    assert process.wait(10) == -signal.SIGTERM
    with pytest.raises(AitrainError, match="is no longer running"):
        watch.stop(run, now=False)


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([STARTED, {"event": "finished"}], "is finished: there is nothing to stop"),
        ([{**STARTED, "host": "elsewhere", "pid": 1}], "runs on elsewhere: stop it there"),
        ([STARTED, {"event": "waiting"}], "is not running"),
        ([{**STARTED, "host": socket.gethostname(), "pid": os.getppid() * 0 + 1}], "is no longer running"),
    ],
)
def test_what_cannot_be_stopped(events: list[dict[str, Any]], says: str, tmp_path: Path) -> None:
    with pytest.raises(AitrainError, match=says):
        watch.stop(make(tmp_path / "a", *events), now=False)


def test_a_job_that_is_gone_cannot_be_stopped(queue: list[QueuedJob], tmp_path: Path) -> None:
    with pytest.raises(AitrainError, match=r"not in the queue \(its last job was 12\)"):
        watch.stop(make(tmp_path / "a", SUBMITTED, STARTED), now=False)
