"""A real Slurm of several nodes for the tests, and what they do with its jobs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aitrain.launch.local_slurm import running_site

NODES = 8
GPUS = 8


def aitrain(*words: str, code: int = 0, variables: dict[str, str] | None = None) -> str:
    """Run a command of aitrain, as a user would; return what it printed on standard output, or all of a refusal."""
    command = [sys.executable, "-m", "aitrain", *words]
    env = {**os.environ, **(variables or {})}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + (done.stderr if code else "")


def slurm(*words: str, variables: dict[str, str] | None = None, code: int | None = 0) -> str:
    """Run one of Slurm's commands against the cluster of the tests, or another one that a variable names."""
    folder = (variables or {}).get("AITRAIN_LOCAL_SLURM")
    site = running_site(None if folder is None else Path(folder))
    assert site is not None
    env = {**os.environ, "SLURM_CONF": str(site.configuration)}
    done = subprocess.run(list(words), capture_output=True, text=True, env=env, timeout=100)
    assert code in (None, done.returncode), f"{words}: {done.returncode} {done.stdout} {done.stderr}"
    return done.stdout + done.stderr


def wait_for(what: str, is_so: Callable[[], Any], seconds: float, run: Path | None = None) -> Any:
    """Wait until something is so; when that takes too long, show the log of the run."""
    began = time.monotonic()
    deadline = began + seconds
    while not (found := is_so()):
        if time.monotonic() > deadline:
            logs = "" if run is None else "\n".join(path.read_text() for path in run.glob("logs/slurm-*.out"))
            jobs = slurm("squeue", "--array")
            raise AssertionError(f"not within {seconds} s: {what}\n{jobs}\n{logs[-6000:]}")
        time.sleep(0.2)
    print(f"{time.strftime('%X')} after {time.monotonic() - began:.1f} s: {what}")
    return found


def records(file: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file of JSON lines."""
    if not file.is_file():
        return []
    text = file.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def steps(run: Path) -> int:
    """Return the optimizer steps that a run has done."""
    found = records(run / "metrics.jsonl")
    return int(found[-1]["step"]) if found else 0


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """Return the events of some kinds."""
    return [event for event in records(run / "events.jsonl") if event["event"] in kinds]


def log(run: Path) -> str:
    """Return what the job of a run printed."""
    return "".join(path.read_text() for path in sorted(run.glob("logs/slurm-*.out")))


def queue(variables: dict[str, str] | None = None) -> list[str]:
    """Return the numbers of the jobs that wait or run."""
    return slurm("squeue", "--noheader", "--array", "-o", "%i", variables=variables).split()


def jobs_named(name: str, partition: str = "debug") -> list[list[str]]:
    """Return number, reason and nodes of the jobs of a name."""
    rows = slurm("squeue", "--noheader", f"--name={name}", f"--partition={partition}", "-o", "%i|%r|%N").splitlines()
    return [row.split("|") for row in rows if row.count("|") == 2]  # not a warning of a command that succeeded


def is_over(run: Path, variables: dict[str, str] | None = None) -> bool:
    """Whether a run is finished and its job has left the queue."""
    done = events(run, "finished", "launched", "resumed")
    if not done or done[-1]["event"] != "finished":
        return False
    return job_of(run) not in queue(variables)


def job_of(run: Path) -> str:
    """Return the number of the newest job of a run."""
    return str(events(run, "submitted", "launched")[-1]["job"])


def rank_processes(run: Path, supervised: bool = True) -> dict[int, int]:
    """Return the process of every rank of a run by number; with `supervised` false, that of its supervisor."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            variables = dict(
                word.split(b"=", 1) for word in (entry / "environ").read_bytes().split(b"\0") if b"=" in word
            )
        except OSError:
            continue
        if b"aitrain" not in words or os.fsencode(run / "run.yaml") not in words or b"train" not in words:
            continue
        if re.search(rb"python", words[0]) and (b"AITRAIN_SUPERVISED" in variables) == supervised:
            found[int(variables[b"SLURM_PROCID"])] = int(entry.name)
    return found


def node_of(pid: int) -> str:
    """Return the name of the pretended node that a process runs on."""
    for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if word.startswith(b"SLURMD_NODENAME="):
            return word.split(b"=", 1)[1].decode()
    raise AssertionError(f"{pid} runs on no node")


def submit(words: list[str], run: Path, *more: str, variables: dict[str, str] | None = None) -> str:
    """Submit a recipe with two nodes of two ranks, or what more words say; return the number of the job."""
    nodes = [] if "--nodes" in more else ["--nodes", "2"]
    time_limit = [] if "--time" in more else ["--time", "01:00:00"]
    cluster = ["--cluster", "local_slurm", *nodes, *time_limit, *more]
    said = aitrain("submit", *words, f"run.dir={run}", *cluster, variables=variables)
    found = re.match(r"Submitted job (\d+) to local_slurm", said)
    assert found, said
    return found.group(1)
