"""A login node: each thing that can be wrong is said with what to do; no connection is opened."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest

from aitrain import cli
from aitrain.doctor import login
from aitrain.doctor.finding import Finding, Grade
from aitrain.launch.clusters import load


def of(findings: list[Finding], what: str) -> list[Finding]:
    return [finding for finding in findings if finding.what == what]


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No command of Slurm, and a folder of one's own."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(folder: Path, name: str, text: str) -> None:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def test_a_laptop(no_slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "sbatch is not found here" in out and out.endswith("No problems found.\n")
    assert list(no_slurm.iterdir()) == []


def test_an_environment_for_other_machines(no_slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--cluster", "jupiter"]) == 2
    out = capsys.readouterr().out
    assert "but the nodes of jupiter are aarch64" in out and "built for CPUs only" in out
    assert "jobs load Stages/" in out and "Traceback" not in out


@pytest.mark.parametrize(
    ("version", "driver", "grade", "says"),
    [
        ("2.13.0+cu130", "580.65.06", Grade.ok, "driver 580, 1 GPU here"),
        ("2.13.0+cu130", "550.54.15", Grade.wrong, "with driver 550: it needs 580 or newer"),
        ("2.13.0+cu126", "550.54.15", Grade.ok, "driver 550"),
        ("2.13.0+cpu", "580.65.06", Grade.wrong, "this torch is a CPU build"),
    ],
)
def test_torch_and_driver(
    version: str, driver: str, grade: Grade, says: str, no_slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = no_slurm / "proc/driver/nvidia/version"
    file.parent.mkdir(parents=True)
    file.write_text(f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {driver}  Release Build\n")
    (no_slurm / "dev").mkdir()
    (no_slurm / "dev/nvidia0").touch()
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    (found,) = of(login.look(None, {}, no_slurm), "torch")
    assert found.grade is grade and says in found.said


def test_proxies_are_named_without_their_passwords(no_slurm: Path) -> None:
    (found,) = of(login.look(None, {"https_proxy": "http://me:secret@proxy:3128"}), "proxy")
    assert "https_proxy" in found.said and "secret" not in found.said and found.grade is Grade.note


def test_modules_that_jobs_would_not_load(no_slurm: Path) -> None:
    (found,) = of(login.look(load("vega", {}), {"LOADEDMODULES": "Python/3.11:CUDA/12"}), "modules")
    assert "Python/3.11 CUDA/12 are loaded here: jobs do not load them" in found.said


SACCTMGR = "echo 'project_1|normal,ehpc'; echo 'project_2|normal'"


@pytest.mark.parametrize(
    ("account", "qos", "sinfo", "says"),
    [
        ("project_1", "ehpc", "echo 'acc up'", None),
        ("project_9", None, "echo 'acc up'", "project_9 is not available to you: choose from project_1, project_2"),
        ("project_2", "ehpc", "echo 'acc up'", "ehpc is not available to you: choose from normal"),
        ("project_1", "ehpc", "echo 'gpp up'", "there is no partition acc here: choose from gpp"),
        (
            "project_1",
            "ehpc",
            "echo 'sinfo: error: no controller' >&2; exit 1",
            "does not answer: error: no controller",
        ),
    ],
)
def test_slurm_and_what_this_user_may(
    account: str, qos: str | None, sinfo: str, says: str | None, no_slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(no_slurm, "sbatch", "exit 0")
    program(no_slurm, "sinfo", sinfo)
    program(no_slurm, "sacctmgr", SACCTMGR)
    monkeypatch.setenv("PATH", f"{no_slurm}/bin:/usr/bin:/bin")
    cluster = load("marenostrum5", {})
    cluster.profile.account, cluster.profile.qos = account, qos
    found = [finding for finding in login.look(cluster, os.environ) if finding.what in ("Slurm", "account", "QoS")]
    wrong = [finding.said for finding in found if finding.grade is Grade.wrong]
    assert wrong == [] if says is None else [says in said for said in wrong] == [True]


def test_a_full_disk(no_slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs("/")
    full = os.statvfs_result((real.f_bsize, 4096, 10**9, 10**6, 10**6, 10**6, 10, 10, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    (found,) = of(login.look(None, {}), "this folder")
    assert "4 GB free: a checkpoint may not fit" in found.said and found.grade is Grade.wrong


def test_a_quota_of_lustre(no_slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(no_slurm, "lfs", "echo '/scratch 60000000* 0 50000000 - 12 0 0 -'")
    monkeypatch.setenv("PATH", f"{no_slurm}/bin:/usr/bin:/bin")
    (found,) = of(login.look(None, {}), "quota")
    assert found.said == "60 GB used of 50 GB: over the limit; remove files" and found.grade is Grade.wrong
