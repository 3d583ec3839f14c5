"""A rank as a process of its own: its exit code, who speaks, and that it does not outlive its launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from aitrain.dist.ranks import Ranks


@pytest.mark.parametrize("rank", [0, 1])
def test_a_fault_is_told_by_the_first_rank_only(tmp_path: Path, rank: int) -> None:
    place = Ranks(rank, 2, rank, 2, "127.0.0.1", 1, "aitrain")
    done = subprocess.run(
        [sys.executable, "-m", "aitrain.trainer.rank", str(tmp_path)],
        env={**os.environ, **place.environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert ("no run.yaml" in done.stderr) == (rank == 0)
    assert "Traceback" not in done.stderr


# the training is replaced by waiting: this is about the life of the process
WAITING = """
import os, sys, time
from pathlib import Path
from aitrain.trainer import fit, rank
def wait(directory, ranks, **others):
    Path(sys.argv[1], str(ranks.rank)).write_text(str(os.getpid()))
    time.sleep(600)
fit.fit = wait
sys.exit(rank.main(sys.argv[1:]))
"""
LAUNCHER = """
import sys
from aitrain.dist.processes import run_ranks
sys.exit(run_ranks(sys.argv[1:], 2))
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet collected does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_ranks_die_with_a_killed_launcher(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("")
    waiting = [sys.executable, "-c", textwrap.dedent(WAITING), str(tmp_path)]
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, *waiting])
    while not all((tmp_path / str(rank)).is_file() and (tmp_path / str(rank)).read_text() for rank in range(2)):
        assert launcher.poll() is None
        time.sleep(0.02)
    pids = [int((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert all(map(alive, pids))
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    while any(map(alive, pids)):  # the test's own time limit ends this when they live on
        time.sleep(0.02)
