"""Restarts of a job by itself: as many as bring the run further, and a few that do not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aitrain.errors import GuardError, LaunchError
from aitrain.trainer import restarts
from aitrain.trainer.restarts import note_launch
from aitrain.trainer.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The marks of earlier jobs count as stale at once."""
    monkeypatch.setattr(restarts, "STALE_S", 0.0)


def launch(directory: RunDirectory, restart: int, **more: str) -> None:
    note_launch(directory, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restart), **more}, 2)


def test_restarts_without_a_new_checkpoint_are_given_up(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for restart in range(3):
        launch(directory, restart)
    directory.event("rank_failed", reason="rank 3 on node2 was killed")
    with pytest.raises(GuardError, match="restarted 2 times without .* rank 3 on node2 was killed.*sbatch"):
        launch(directory, 3)
    launch(directory, 0)  # somebody hands it in again
    launch(directory, 1)
    launch(directory, 2)
    with pytest.raises(GuardError):
        launch(directory, 3)


def test_restarts_that_bring_a_checkpoint_go_on_for_ever(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for restart in range(9):
        launch(directory, restart)
        directory.event("checkpoint", step=restart)


def test_the_jobs_of_a_chain_count_as_restarts(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for link in range(1, 4):
        note_launch(directory, {"SLURM_JOB_ID": str(link), "AITRAIN_LINK": str(link)}, 2)
    with pytest.raises(GuardError):
        note_launch(directory, {"SLURM_JOB_ID": "4", "AITRAIN_LINK": "4"}, 2)


def test_without_slurm_nothing_is_counted(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for _ in range(5):
        note_launch(directory, {}, 0)
    assert not directory.events_file.exists()


def test_a_task_of_an_array_has_its_own_number(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    launch(directory, 0, SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="2")
    assert directory.last_of("launched")["job"] == "5_2"


class Clock:
    """Time that passes only while somebody sleeps, and what happens meanwhile."""

    def __init__(self, each_sleep: Callable[[float], object] = lambda now: None) -> None:
        self.now = 0.0
        self.each_sleep = each_sleep

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.each_sleep(self.now)


def test_two_jobs_never_train_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark of another job: stale after a crash, gone after a while, or kept fresh."""
    directory = RunDirectory(tmp_path)
    mark = directory.logs / restarts.RUNNING
    monkeypatch.setattr(restarts, "STALE_S", 25.0)

    def seconds_until(restart: int, each_sleep: Callable[[float], object] = lambda now: None) -> float:
        clock = Clock(each_sleep)
        monkeypatch.setattr(restarts, "time", clock)
        launch(directory, restart)
        return clock.now

    assert seconds_until(0) == 0 and mark.read_text() == "7 0"
    assert seconds_until(0) == 0, "it waited for itself"
    assert seconds_until(1) == restarts.STALE_S + 0.5, "the job before crashed, and left its mark"
    assert mark.read_text() == "7 1"

    mark.write_text("8 0")
    assert seconds_until(2, lambda now: now == 3.0 and mark.unlink()) == 3.0 + 0.5, "it waited for a job that had ended"
    assert mark.read_text() == "7 2"

    mark.write_text("8 0")
    with pytest.raises(LaunchError, match="is being trained by job 8: wait until it has ended, or stop it"):
        seconds_until(3, lambda now: os.utime(mark, ns=(0, int(now * 1e9))))
    assert mark.read_text() == "8 0"
