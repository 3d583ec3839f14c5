"""A Slurm on this machine: what is refused before anything is started. tests/e2e/test_slurm.py has a running one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from aitrain import cli
from aitrain.errors import LaunchError
from aitrain.launch import local_slurm
from aitrain.launch.local_nodes import shared_folders, start_process, stop_process
from aitrain.launch.local_slurm import Process, is_alive


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["start", "--nodes", "0"], "--nodes=0 is not possible: write a number from 1 to 16"),
        (["start", "--gpus", "99"], "--gpus=99 is not possible"),
        (["start", "node1"], "kill-node and start-node take the name of a node"),
        (["kill-node"], "kill-node and start-node take the name of a node"),
        (["stop"], "No cluster was started in"),
        (["status"], "No cluster runs in"),
        (["kill-node", "node1"], "No cluster runs in"),
    ],
)
def test_refusals(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_slurm, "PROGRAMS", ())
    assert cli.main(["local-slurm", *words, "--dir", str(tmp_path / "site")]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert not (tmp_path / "site").exists()


def test_missing_programs_are_named_with_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match="slurmctld, slurmd, .* not found. Install Slurm first.*apt-get install"):
        local_slurm.start(2, 2, tmp_path, True)


def test_a_folder_too_long_for_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_slurm, "PROGRAMS", ())
    with pytest.raises(LaunchError, match="too long for a socket"):
        local_slurm.start(2, 2, Path("/tmp") / ("x" * 80), True)


def test_what_fails_to_start_leaves_nothing_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """slurmctld is missing: munged, which was started before it, is ended again."""
    folder = tmp_path / "s"
    monkeypatch.setattr(local_slurm, "PROGRAMS", ())
    started: list[Process] = []

    def note(command: list[str], log: Path) -> Process:
        if command[0] == "slurmctld":
            raise FileNotFoundError("slurmctld")
        started.append(start_process(["sleep", "60"], log))
        return started[-1]

    monkeypatch.setattr(local_slurm, "start_process", note)
    monkeypatch.setattr(local_slurm, "_wait_for", lambda *_: None)
    with pytest.raises(FileNotFoundError):
        local_slurm.start(1, 0, folder, True)
    assert len(started) == 1 and not is_alive(started[0])
    assert not (folder / "state.json").exists() and local_slurm.running_site(folder) is None


def test_clusters_start_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that start at the same time would choose the same ports, because nobody listens there yet."""
    monkeypatch.setattr(local_slurm, "TURN", "\0aitrain-test-of-a-turn")
    monkeypatch.setattr(local_slurm, "TURN_S", 0.3)
    monkeypatch.setattr(local_slurm, "_refuse", lambda *_: None)
    started: list[Path] = []
    monkeypatch.setattr(local_slurm, "_start", lambda nodes, gpus, folder, one_host: started.append(folder))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind("\0aitrain-test-of-a-turn")
        with pytest.raises(
            LaunchError, match="Another cluster has been starting on this machine for 0 s: try again later"
        ):
            local_slurm.start(1, 1, tmp_path, False)
    assert not started
    for _ in range(2):
        local_slurm.start(1, 1, tmp_path, False)
    assert started == [tmp_path, tmp_path]


def test_only_the_process_that_was_started_is_ended(tmp_path: Path) -> None:
    """Another one may have its number by now."""
    process = start_process(["sleep", "60"], tmp_path / "log")
    stop_process(Process(process.pid, process.started + 1), 0.0)
    assert is_alive(process)
    stop_process(process, 0.0)
    assert not is_alive(process)


def test_folders_below_tmp_that_nodes_share(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    found = shared_folders([tmp_path, inside, Path("/tmp"), Path("/usr")])
    assert str(tmp_path) in found and str(inside) not in found and "/tmp" not in found and "/usr" not in found
