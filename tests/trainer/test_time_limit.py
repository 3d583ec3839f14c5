"""The time limit of a job: read from the environment or from scontrol, kept away from, read anew when it is moved."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from aitrain.trainer.time_limit import TimeLimit, end_of_job


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scontrol that says what is in a file."""
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/bash\n[ "$*" = "show job 7" ] && cat {tmp_path}/says\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "says"


def says(end: float) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(end))
    return f"JobId=7 JobName=x\n   StartTime=2026-01-01T00:00:00 EndTime={stamp} Deadline=N/A\n"


def test_where_the_end_is_read(scontrol: Path) -> None:
    end = float(int(time.time()) + 500)
    scontrol.write_text(says(end))
    assert end_of_job({"SLURM_JOB_ID": "7"}) == end
    assert end_of_job({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1700000000"}) == 1.7e9
    assert end_of_job({}) is None
    scontrol.write_text("JobId=7\n   EndTime=Unknown\n")
    assert end_of_job({"SLURM_JOB_ID": "7"}) is None


def test_in_a_container_there_is_no_scontrol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    limit = TimeLimit({"SLURM_JOB_ID": "7"})
    assert limit.end is None and not limit.is_near()


def test_a_run_stops_early_enough_to_be_saved(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.time()
    scontrol.write_text(says(began + 3600))
    limit = TimeLimit({"SLURM_JOB_ID": "7"})
    for elapsed, save, near in (
        (0, 0, False),
        (3500, 0, False),
        (3545, 0, True),
        (3400, 100, True),
        (3300, 100, False),
    ):
        monkeypatch.setattr(time, "time", lambda elapsed=elapsed: began + elapsed)
        limit._save_s = save
        assert limit.is_near() is near, (elapsed, save)
    scontrol.write_text(says(began + 7200))  # somebody gave it more time
    monkeypatch.setattr(time, "time", lambda: began + 3590)
    limit.note_save(5)
    assert not limit.is_near() and limit.end is not None and limit.end > began + 7000


def test_a_short_job_keeps_back_only_a_part(scontrol: Path) -> None:
    scontrol.write_text(says(time.time() + 100))
    limit = TimeLimit({"SLURM_JOB_ID": "7"})
    assert 20 < limit.reserve_s <= 25 and not limit.is_near()
