"""The same recipe under torchrun and srun: one run directory, the losses of one rank, one message."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import CONTEXT_TOKENS

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
AITRAIN = ["-m", "aitrain"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def words(tiny_model: Path, tiny_data: Path) -> list[str]:
    """A training that says nothing about devices: that is the launcher's part."""
    return [
        "train",
        "sft_full",
        "data.validation_samples=null",
        f"model.path={tiny_model}",
        f"data.path={tiny_data}",
        f"data.sequence_tokens={CONTEXT_TOKENS}",
        "trainer.accelerator=cpu",
        "trainer.precision=fp32",
        "trainer.max_epochs=null",
        "trainer.max_steps=4",
        "trainer.global_batch_samples=4",
        "trainer.micro_batch_samples=1",
        "optim.lr=1e-3",
        "export.at_end=false",
    ]


def torchrun(words: list[str], folder: Path) -> tuple[list[int], str]:
    """Start two ranks with torchrun in a folder; return their exit codes and what they said."""
    command = [*TORCHRUN, "--master-port", str(free_port()), *AITRAIN, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return [done.returncode], done.stderr


def srun(words: list[str], folder: Path) -> tuple[list[int], str]:
    """Start two ranks with the variables that srun sets; return their exit codes and what they said."""
    slurm = {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NODEID": "0",
        "PATH": "/nowhere",  # as in a container: no scontrol, nothing of Slurm
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, *AITRAIN, *words],
            env={**os.environ, **slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        for rank in range(2)
    ]
    said = "".join(rank.communicate()[1] for rank in ranks)
    return [rank.returncode for rank in ranks], said


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    return [record["loss"] for record in records]


@pytest.fixture(scope="session")
def expected(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of one rank."""
    from aitrain import cli

    run = tmp_path_factory.mktemp("one") / "run"
    assert cli.main([*words, f"run.dir={run}"]) == 0
    return losses(run)


@pytest.mark.parametrize("launcher", [torchrun, srun])
def test_two_ranks_make_one_run_with_the_losses_of_one(
    launcher: object, words: list[str], expected: list[float], tmp_path: Path
) -> None:
    """Without `run.dir`: the ranks agree on the name that holds the time. Once more after the end: nothing is done."""
    assert callable(launcher)
    codes, err = launcher(words, tmp_path)
    assert set(codes) == {0}, err
    (run,) = (tmp_path / "runs").iterdir()
    assert losses(run) == pytest.approx(expected, rel=1e-6)
    started = json.loads((run / "events.jsonl").read_text().splitlines()[0])
    assert (started["event"], started["ranks"], started["nodes"]) == ("started", 2, 1)
    assert err.count("4 steps of 4 sequences: 2 CPU ranks") == 1
    if launcher is srun:
        before = (run / "events.jsonl").read_bytes(), losses(run)
        codes, err = srun([*words, "--or-resume", f"run.dir={run}"], tmp_path)
        assert set(codes) == {0}, err
        assert err.count("is already finished: nothing left to do") == 1, "one rank speaks"
        assert ((run / "events.jsonl").read_bytes(), losses(run)) == before


@pytest.mark.parametrize(
    ("word", "code", "says"),
    [
        pytest.param("optim.lrr=1", 2, "optim.lrr is not a key: did you mean optim.lr?", marks=pytest.mark.slow),
        ("data.path=bad.jsonl", 3, "bad.jsonl:1"),
    ],
)
def test_a_fault_is_told_once_and_every_rank_leaves_with_its_code(
    words: list[str], tmp_path: Path, word: str, code: int, says: str
) -> None:
    (tmp_path / "bad.jsonl").write_text("{\n")
    codes, err = srun([*words, word, "run.dir=run"], tmp_path)
    assert codes == [code, code], err
    assert err.count(says) == 1 and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_a_fault_under_torchrun(words: list[str], tmp_path: Path) -> None:
    """torchrun ends with a code and a report of its own; the report names the code of a rank."""
    _, err = torchrun([*words, "trainer.devices=3", "trainer.global_batch_samples=6"], tmp_path)
    assert err.count("trainer.devices=3, but torchrun started 2 ranks on this node") == 1
    assert "exitcode  : 2" in err
    assert not list(tmp_path.iterdir())
