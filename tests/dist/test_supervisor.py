"""Three ranks on this machine, each under its supervisor, and everything that can happen to one of them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aitrain.dist import supervisor
from aitrain.dist.ranks import Ranks
from aitrain.dist.supervisor import Supervisor
from aitrain.errors import LaunchError

WORLD = 3
SUPERVISOR = """
import sys
from aitrain.dist import lifeline, supervisor, verdict
from aitrain.dist.ranks import Ranks
verdict.TOLD_S, supervisor.STOPPED_S, verdict.STOPPED_S, verdict.LOST_S, lifeline.LOST_S = 1.0, 2.0, 2.0, 4.0, 4.0
lifeline.REPORT_S = 0.3
rank, port, world = map(int, sys.argv[1:4])
def on_end(verdict, run):
    print("verdict", verdict.code, verdict.rank, run, file=sys.stderr)
ranks = Ranks(rank, world, rank, world, "127.0.0.1", port, "srun")
sys.exit(supervisor.Supervisor(ranks, [sys.executable, "-c", sys.argv[4]], on_end).run())
"""
LONG_S = 60
"""Seconds that a rank waits for others, unless it is ended."""

BEGIN = f"""
import os, signal, sys, time
from aitrain.dist import early_signals, heartbeat
early_signals.hold()
rank = int(os.environ["SLURM_PROCID"])
heartbeat.tell(run=sys.argv[1] if len(sys.argv) > 1 else RUN)
heartbeat.beat("step 3")
def all_reduce():
    time.sleep({LONG_S})
"""


class Started:
    """Supervisors of all ranks, started."""

    def __init__(self, body: str, run: Path, world: int = WORLD) -> None:
        (run / "logs").mkdir(parents=True, exist_ok=True)
        self.run = run
        port = free_pair()
        rank_code = f"RUN = {str(run)!r}\n{BEGIN}\n{body}"
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", SUPERVISOR, str(rank), str(port), str(world), rank_code],
                env={**os.environ, "SLURM_PROCID": str(rank), "SLURMD_NODENAME": f"node{rank}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world)
        ]
        self.began = time.monotonic()

    def end(self) -> tuple[list[int], list[str]]:
        """Wait for all; return their codes and what they said."""
        left = self.began + LONG_S - 10 - time.monotonic()  # else they may have ended by themselves
        said = ["".join(process.communicate(timeout=left)) for process in self.processes]
        for pid in self.children():
            assert not is_running(pid), "a rank was left behind"
        return [process.returncode for process in self.processes], said

    def children(self) -> list[int]:
        """Return the processes of the ranks, which write their numbers where the test can see them."""
        return [int(path.read_text()) for path in self.run.glob("pid-*")]

    def wait_for(self, count: int) -> None:
        """Wait until so many ranks run."""
        deadline = time.monotonic() + 20
        while len([path for path in self.run.glob("pid-*") if path.read_text()]) < count:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return False
        except OSError:
            return False
        time.sleep(0.05)
    return True


NOTE_PID = "open(f'{RUN}/pid-{rank}', 'w').write(str(os.getpid()))\n"


def free_pair() -> int:
    """Return a free port whose next one is free too."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            try:
                two.bind(("127.0.0.1", one.getsockname()[1] + 1))
            except OSError:
                continue
            return int(one.getsockname()[1])


@pytest.mark.parametrize(
    ("body", "code"), [("", 0), ("sys.exit(75)", 75), ("sys.exit(75 if rank == 1 else 0)", 75), ("sys.exit(3)", 3)]
)
def test_all_ranks_end_with_one_code(body: str, code: int, tmp_path: Path) -> None:
    codes, said = Started(body, tmp_path).end()
    assert codes == [code] * WORLD
    assert f"verdict {code} " in said[0] and not any(said[1:])


def test_what_ranks_print(tmp_path: Path) -> None:
    """Rank 0 is passed on as it speaks, the others write logs of their own."""
    _, said = Started("print(f'out {rank}'); print(f'err {rank}', file=sys.stderr)", tmp_path).end()
    assert "out 0\n" in said[0] and "err 0\n" in said[0] and "out 1" not in said[0]
    assert said[1:] == ["", ""]
    for rank in (1, 2):
        assert sorted((tmp_path / f"logs/rank-{rank}.log").read_text().splitlines()) == [f"err {rank}", f"out {rank}"]


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_takes_the_others_down_in_seconds(victim: int, tmp_path: Path) -> None:
    words = "print('my last words', file=sys.stderr)"
    body = f"{NOTE_PID}{words}\nos.kill(os.getpid(), 9) if rank == {victim} else all_reduce()"
    codes, said = Started(body, tmp_path).end()
    assert codes == [75] * WORLD
    assert f"Rank {victim} on node{victim} was killed by signal 9 (SIGKILL" in said[0] and "at: step 3" in said[0]
    assert "my last words" in said[0]
    assert f"verdict 75 {victim} {tmp_path}" in said[0]


def test_the_cause_is_told_before_its_consequences(tmp_path: Path) -> None:
    body = "if rank == 0: time.sleep(0.3); raise RuntimeError('connection closed by peer')\n"
    body += "if rank == 2: raise ValueError('the cause')\nall_reduce()"
    codes, said = Started(body, tmp_path).end()
    assert codes == [1] * WORLD
    assert said[0].index("Rank 2 on node2 ended with exit code 1") < said[0].index("ValueError: the cause")
    assert "connection closed" not in said[0] and "logs/rank-0.log" in said[0]


def test_rank_0_shows_its_own_traceback(tmp_path: Path) -> None:
    codes, said = Started("raise ValueError('mine') if rank == 0 else all_reduce()", tmp_path).end()
    assert codes == [1] * WORLD and said[0].count("ValueError: mine") == 1


def test_a_library_that_prints_a_traceback_does_not_silence_the_run(tmp_path: Path) -> None:
    body = "print('Traceback (most recent call last)', file=sys.stderr); time.sleep(6)\n"
    body += "print('still here', file=sys.stderr) or time.sleep(1) if rank == 0 else None"
    codes, said = Started(body, tmp_path).end()
    assert codes == [0] * WORLD and "Traceback" in said[0] and "still here" in said[0]


def test_a_fault_of_another_rank_is_told(tmp_path: Path) -> None:
    codes, said = Started(
        "print('out of memory', file=sys.stderr) or sys.exit(2) if rank == 1 else all_reduce()", tmp_path
    ).end()
    assert codes == [2] * WORLD and "Rank 1 on node1 ended the run" in said[0] and "| out of memory" in said[0]


def test_a_stopped_rank(tmp_path: Path) -> None:
    body = f"{NOTE_PID}def here(): os.kill(os.getpid(), signal.SIGSTOP)\nhere() if rank == 1 else all_reduce()"
    codes, said = Started(body, tmp_path).end()
    assert codes == [75] * WORLD
    assert "Rank 1 on node1 was stopped (SIGSTOP)" in said[0] and "in here" in said[0]
    assert "in here" in (tmp_path / "logs/rank-1.log").read_text(), "its stack"
    assert "in all_reduce" in (tmp_path / "logs/rank-2.log").read_text(), "everybody's stack"


@pytest.mark.parametrize("way", [f"time.sleep({LONG_S})", "re.match('(a+)+$', 'a' * 60 + 'b')"])
def test_a_hanging_rank_is_named_with_its_stack(way: str, tmp_path: Path) -> None:
    """The second way keeps Python's lock, so that no thread of the rank could tell anything."""
    body = f"{NOTE_PID}import re\ndef here(): {way}\nheartbeat.tell(hang_s=1.5)\nhere() if rank == 2 else all_reduce()"
    codes, said = Started(body, tmp_path).end()
    assert codes == [75] * WORLD
    assert "all wait for rank 2 on node2, at: step 3" in said[0] and "in here" in said[0]


def test_a_rank_that_gets_on_keeps_the_others_from_counting_as_hung(tmp_path: Path) -> None:
    body = "heartbeat.tell(hang_s=4.0)\nfor _ in range(12):\n  time.sleep(0.5)\n"
    body += "  heartbeat.beat('data') if rank == 1 else None"
    assert Started(body, tmp_path).end()[0] == [0] * WORLD


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_node_ends_the_others(victim: int, tmp_path: Path) -> None:
    """Its supervisor is killed, which also ends its rank."""
    started = Started(f"{NOTE_PID}all_reduce()", tmp_path)
    started.wait_for(WORLD)
    time.sleep(1)
    started.processes[victim].kill()
    codes, said = started.end()
    assert codes == [-9 if rank == victim else 75 for rank in range(WORLD)]
    if victim == 0:
        assert all(f"node{rank}: rank 0 is lost" in said[rank] for rank in (1, 2))
    else:
        assert "Rank 1 on node1 is lost" in said[0]


def test_a_silent_node_is_lost_too(tmp_path: Path) -> None:
    """Its network is gone: the connection is not closed, but nothing comes any more."""
    started = Started(f"{NOTE_PID}all_reduce()", tmp_path)
    started.wait_for(WORLD)
    time.sleep(1)
    started.processes[1].send_signal(signal.SIGSTOP)
    codes_of_others = [started.processes[rank].wait(LONG_S - 20) for rank in (0, 2)]
    assert codes_of_others == [75, 75]
    started.processes[1].kill()
    assert "Rank 1 on node1 is lost" in started.end()[1][0]


def test_a_job_that_was_suspended_goes_on(tmp_path: Path) -> None:
    """`scontrol suspend` stops every process of a job for any length of time."""
    started = Started(f"{NOTE_PID}time.sleep(1)\nheartbeat.beat('step 4')\ntime.sleep(1)", tmp_path)
    started.wait_for(WORLD)
    time.sleep(0.7)
    everyone = [*(process.pid for process in started.processes), *started.children()]
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(5)
    for pid in reversed(everyone):
        os.kill(pid, signal.SIGCONT)
    assert started.end()[0] == [0] * WORLD


def test_signals_reach_the_ranks(tmp_path: Path) -> None:
    body = f"got = []\nsignal.signal(signal.SIGUSR1, lambda *_: got.append(1))\n{NOTE_PID}"
    body += "while not got: time.sleep(0.05)\nsys.exit(75)"
    started = Started(body, tmp_path)
    started.wait_for(WORLD)
    for process in started.processes:
        process.send_signal(signal.SIGUSR1)
    assert started.end()[0] == [75] * WORLD


def test_a_single_rank_needs_no_port(tmp_path: Path) -> None:
    codes, said = Started("sys.exit(75)", tmp_path, world=1).end()
    assert codes == [75] and re.search("verdict 75 None", said[0])


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    port = free_pair()
    with socket.create_server(("", port + 1)), pytest.raises(LaunchError, match=f"Port {port + 1} of .* is in use"):
        Supervisor(Ranks(0, 2, 0, 2, "127.0.0.1", port, "srun"), ["true"], lambda *_: None)


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "AITRAIN_SUPERVISED": "1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "RANK": "0"}, False),
        ({"SLURM_JOB_ID": "1"}, False),
    ],
)
def test_who_is_supervised(variables: dict[str, str], wanted: bool) -> None:
    assert supervisor.is_wanted(variables) is wanted
