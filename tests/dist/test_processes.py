"""Real child processes: how they end, who is told, and who is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from aitrain.dist import processes
from aitrain.dist.processes import free_port, run_ranks


def python(code: str, *words: object) -> list[str]:
    """Return the command that runs code with words as its arguments."""
    return [sys.executable, "-c", textwrap.dedent(code), *map(str, words)]


def test_every_rank_learns_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = """
    import os, sys
    from aitrain.dist.ranks import detect
    ranks = detect()
    with open(f"{sys.argv[1]}/{ranks.rank}", "w") as file:
        print(ranks.launcher, ranks.world, ranks.local_rank, ranks.local_world, ranks.address, file=file)
        print(ranks.port, os.environ["OMP_NUM_THREADS"], file=file)
    """
    assert run_ranks(python(code, tmp_path), 2) == 0
    said = [(tmp_path / str(rank)).read_text().splitlines() for rank in range(2)]
    assert [lines[0] for lines in said] == ["aitrain 2 0 2 127.0.0.1", "aitrain 2 1 2 127.0.0.1"]
    assert said[0][1] == said[1][1], "the ranks must meet at one port"
    assert said[0][1].split()[1] == str(max(1, (os.cpu_count() or 1) // 2))


def test_threads_that_the_user_set_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert run_ranks(python("import os, sys; sys.exit(os.environ['OMP_NUM_THREADS'] != '7')"), 1) == 0


@pytest.mark.parametrize("code", [2, 3, 4, 75])
def test_exit_code_of_the_ranks_is_the_launchers(code: int) -> None:
    assert run_ranks(python(f"import sys; sys.exit({code})"), 2) == code


def test_one_failing_rank_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank waits for ever and ignores SIGTERM; the code is that of the rank that failed by itself."""
    monkeypatch.setattr(processes, "GRACE_S", 0.2)
    code = """
    import os, signal, sys
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(3) if os.environ["RANK"] == "1" else signal.pause()
    """
    assert run_ranks(python(code), 2) == 3


def test_a_rank_that_ends_in_time_is_not_killed(tmp_path: Path) -> None:
    code = """
    import os, pathlib, sys, time
    if os.environ["RANK"] == "1":
        sys.exit(2)
    time.sleep(0.3)
    pathlib.Path(sys.argv[1], "ended").touch()
    """
    assert run_ranks(python(code, tmp_path), 2) == 2
    assert (tmp_path / "ended").exists()


LAUNCHER = """
import sys
from aitrain.dist.processes import run_ranks
sys.exit(run_ranks(sys.argv[1:], 2))
"""

LISTENER = r"""
import os, signal, sys, time
counts = {}
def heard(number, frame):
    counts[number] = counts.get(number, 0) + 1
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, heard)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # as ranks do
os.write(1, b"up\n")
while not counts:
    time.sleep(0.01)
time.sleep(0.3)  # a second delivery of the same signal would come in this time
os.write(1, b"".join(b"%sx%d\n" % (signal.Signals(n).name.encode(), c) for n, c in counts.items()))
sys.exit(75)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_every_rank_once(number: signal.Signals) -> None:
    """The signal goes to the launcher's whole process group, as a terminal's Ctrl-C does."""
    launcher = subprocess.Popen(
        python(LAUNCHER, *python(LISTENER)), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert launcher.stdout is not None
    assert [launcher.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
    os.killpg(launcher.pid, number)
    rest, _ = launcher.communicate(timeout=60)
    assert rest.split() == [f"{number.name}x1"] * 2
    assert launcher.returncode == 75


def test_handlers_of_the_launcher_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    run_ranks([sys.executable, "-c", ""], 1)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


def test_a_program_that_is_not_there_leaves_no_process() -> None:
    with pytest.raises(FileNotFoundError):
        run_ranks(["/no/such/program"], 2)


def test_free_port_can_be_taken() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))
        server.listen()
