"""Checks a login node, or any machine: Python, torch, driver, disks, proxies, modules, Slurm. Opens no connection."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from aitrain.doctor.finding import Finding, Grade
from aitrain.errors import LaunchError
from aitrain.io.home import user_path
from aitrain.launch.binaries import TorchBuild, program_architecture, torch_build
from aitrain.launch.choices import Runtime
from aitrain.launch.clusters import Cluster
from aitrain.launch.job import counted
from aitrain.launch.refusals import purged_area
from aitrain.launch.slurm import Slurm, said
from aitrain.preflight import machine

SMALLEST_FREE_GB = 20.0
SMALLEST_FREE_FILES = 20_000
LARGEST_SKEW_S = 5.0
DRIVERS = {13: 580, 12: 525, 11: 450}
"""CUDA major version of a torch -> oldest driver. Source: https://docs.nvidia.com/deploy/cuda-compatibility,
"minor version compatibility"."""


def look(cluster: Cluster | None, environment: Mapping[str, str], root: Path = Path("/")) -> list[Finding]:
    """Return everything that can be seen here without a job.

    Args:
        cluster: The cluster whose jobs are meant; `None` = only this machine.
        environment: Variables.
        root: Root of the file system.
    """
    return [
        *_python(cluster),
        *_devices(environment, root),
        *_disks(cluster, environment),
        *_network(environment),
        *_modules(cluster, environment),
        *_slurm(cluster, environment),
    ]


def _python(cluster: Cluster | None) -> Iterator[Finding]:
    version = platform.python_version()
    good = (3, 11) <= sys.version_info[:2] <= (3, 12)
    advice = "" if good else ": aitrain needs 3.11 or 3.12"
    yield Finding("Python", f"{version} in {sys.prefix}{advice}", Grade.ok if good else Grade.wrong)
    arch = program_architecture(Path(sys.executable)) or platform.machine()
    if cluster is None:
        yield Finding("architecture", arch)
        return
    wanted = cluster.profile.node.arch.name
    if arch == wanted:
        yield Finding("architecture", f"{arch}, as the nodes of {cluster.name}")
    else:
        advice = "build the environment on a node of that kind, or use a container"
        yield Finding("architecture", f"{arch}, but the nodes of {cluster.name} are {wanted}: {advice}", Grade.wrong)
    built = torch_build(Path(sysconfig.get_path("purelib")))
    needed = {Runtime.cuda: TorchBuild.cuda, Runtime.rocm: TorchBuild.rocm}.get(cluster.profile.device.runtime)
    if built is not None and needed is not None and built is not needed:
        advice = f"install a torch for {needed.value}, or use a container"
        yield Finding("torch", f"built for {built.value}, but {cluster.name} has {needed.value}: {advice}", Grade.wrong)


def _devices(environment: Mapping[str, str], root: Path) -> Iterator[Finding]:
    """Yield whether torch and the driver of this machine go together."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("torch", "not installed: pip install torch", Grade.wrong)
        return
    here = machine(environment, root)
    driver = _driver(root)
    found = re.search(r"\+cu(\d{2})\d", version)
    if driver is None or found is None:
        there = (
            f"{counted(here.gpus, 'GPU')} here"
            if here.gpus
            else "no GPU here: `aitrain doctor --job` looks at those of a job"
        )
        sees = here.torch_sees_gpus or not here.gpus
        advice = "" if sees else ", but this torch is a CPU build: install one for GPUs"
        yield Finding("torch", f"{version}, {there}{advice}", Grade.ok if sees else Grade.wrong)
        return
    oldest = DRIVERS.get(int(found.group(1)))
    if oldest is not None and driver < oldest:
        advice = f"it needs {oldest} or newer: install a torch for an older CUDA, or ask the site"
        yield Finding("torch", f"{version} with driver {driver}: {advice}", Grade.wrong)
    else:
        yield Finding("torch", f"{version}, driver {driver}, {counted(here.gpus, 'GPU')} here")


def _driver(root: Path) -> int | None:
    """Return the major version of NVIDIA's driver; `None` = there is none."""
    file = root / "proc/driver/nvidia/version"
    found = re.search(r"Kernel Module.*?\s(\d+)\.\d", file.read_text()) if file.is_file() else None
    return int(found.group(1)) if found else None


def _disks(cluster: Cluster | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield room, number of files, purge and clock of the folders that runs use."""
    cache = user_path(environment.get("AITRAIN_CACHE") or "~/.cache/aitrain")
    for what, folder in (("this folder", Path.cwd()), ("home", Path.home()), ("cache", cache)):
        parent = folder.absolute()
        while not parent.exists():
            parent = parent.parent
        yield _disk(what, folder, parent, cluster, environment)
    quota = _quota(Path.cwd())
    if quota is not None:
        yield quota
    try:
        with tempfile.NamedTemporaryFile(dir=Path.cwd(), prefix=".aitrain-doctor-") as file:
            skew = os.fstat(file.fileno()).st_mtime - time.time()
    except OSError as error:
        yield Finding("this folder", f"cannot be written ({error.strerror}): change to a folder you own", Grade.wrong)
        return
    if abs(skew) > LARGEST_SKEW_S:
        said_ = f"its clock is {skew:+.0f} s off from this machine's: report it to the site; file times will mislead"
        yield Finding("clock", said_, Grade.wrong)


def _disk(what: str, folder: Path, parent: Path, cluster: Cluster | None, environment: Mapping[str, str]) -> Finding:
    room = os.statvfs(parent)
    free_gb, free_files = room.f_bavail * room.f_frsize / 1e9, room.f_favail
    text, grade = f"{folder}: {free_gb:,.0f} GB free", Grade.ok
    if free_gb < SMALLEST_FREE_GB:
        text, grade = f"{text}: a checkpoint may not fit; free space, or use another folder", Grade.wrong
    elif room.f_files > 0 and free_files < SMALLEST_FREE_FILES:
        text, grade = f"{text}, but only {free_files:,} more files: remove some", Grade.wrong
    area = purged_area(cluster, folder.absolute(), environment) if cluster is not None else None
    if area is not None and grade is Grade.ok:
        text, grade = f"{text}; files are deleted after {area.purge_days} days there", Grade.note
    return Finding(what, text, grade)


def _quota(folder: Path) -> Finding | None:
    """Return what Lustre says about this user's quota; `None` if there is no Lustre."""
    if shutil.which("lfs") is None:
        return None
    done = Slurm().run(["lfs", "quota", "-q", "-u", getpass.getuser(), str(folder)])
    words = done.stdout.split()
    if done.returncode or len(words) < 4:
        return None
    used, limit = words[1], words[3]
    over = used.endswith("*")
    text = (
        f"{int(used.rstrip('*')) / 1e6:,.0f} GB used of {'no limit' if limit == '0' else f'{int(limit) / 1e6:,.0f} GB'}"
    )
    if over:
        return Finding("quota", f"{text}: over the limit; remove files", Grade.wrong)
    return Finding("quota", text, Grade.ok)


def _network(environment: Mapping[str, str]) -> Iterator[Finding]:
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    proxies = sorted({name for name in names if environment.get(name)})
    if proxies:
        # addresses of proxies may hold passwords
        yield Finding("proxy", f"{', '.join(proxies)} set: fetching goes through it; jobs inherit it", Grade.note)
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if environment.get(name) == "1"]
    if offline:
        yield Finding("network", f"{', '.join(offline)}=1: Hugging Face libraries open no connection", Grade.note)


def _modules(cluster: Cluster | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    loaded = [word for word in environment.get("LOADEDMODULES", "").split(":") if word]
    wanted = cluster.profile.software.modules if cluster is not None else []
    if wanted:
        yield Finding("modules", f"jobs load {' '.join(wanted)}")
    elif loaded and cluster is not None:
        advice = "jobs do not load them; where the environment needs one, set software.modules in your own profile"
        yield Finding("modules", f"{' '.join(loaded)} are loaded here: {advice}", Grade.note)


def _slurm(cluster: Cluster | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield whether Slurm answers, and accepts the partition, account and QoS of the profile."""
    slurm = Slurm(cluster.name if cluster is not None else None)
    if not slurm.is_here:
        where = "here: jobs are submitted on a login node" if cluster is not None else "here"
        yield Finding("Slurm", f"sbatch is not found {where}", Grade.note if cluster is None else Grade.wrong)
        return
    try:
        done = slurm.run(["sinfo", "--noheader", "-o", "%R %a"])
    except LaunchError as error:
        yield Finding("Slurm", str(error), Grade.wrong)
        return
    if done.returncode:
        yield Finding("Slurm", f"does not answer: {said(done)}", Grade.wrong if cluster is not None else Grade.note)
        return
    partitions = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
    partition = cluster.profile.partition if cluster is not None else None
    if partition is not None and partition not in partitions:
        advice = f"choose from {', '.join(partitions)}: set partition in your own profile"
        yield Finding("Slurm", f"there is no partition {partition} here: {advice}", Grade.wrong)
    else:
        yield Finding("Slurm", f"answers; partitions {', '.join(partitions)}")
    if cluster is not None:
        yield from _account(cluster, slurm, environment)


def _account(cluster: Cluster, slurm: Slurm, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield whether this user may bill the account, and use the QoS, that jobs would name."""
    account = cluster.profile.account or environment.get("SBATCH_ACCOUNT")
    if cluster.profile.account_required and account is None:
        advice = "write account: NAME in your own profile, or --account"
        yield Finding("account", f"{cluster.name} bills every job to one, and none is set: {advice}", Grade.note)
    if shutil.which("sacctmgr") is None:
        return
    words = [
        "sacctmgr",
        "--noheader",
        "--parsable2",
        "show",
        "assoc",
        f"user={getpass.getuser()}",
        "format=account,qos",
    ]
    try:
        done = slurm.run(words)
    except LaunchError as error:
        yield Finding("account", str(error), Grade.note)
        return
    rows = [line.split("|") for line in done.stdout.splitlines() if "|" in line]
    if done.returncode or not rows:
        yield Finding("account", "Slurm has no accounting here, or does not show it to you", Grade.note)
        return
    accounts = sorted({row[0] for row in rows})
    if account is not None and account not in accounts:
        yield Finding("account", f"{account} is not available to you: choose from {', '.join(accounts)}", Grade.wrong)
        return
    yield Finding("account", f"{account or 'yours'}: you may use {', '.join(accounts)}")
    qos = sorted({word for row in rows if account in (None, row[0]) for word in row[1].split(",") if word})
    if cluster.profile.qos is not None and cluster.profile.qos not in qos:
        refused = f"{cluster.profile.qos} is not available to you: choose from {', '.join(qos)}"
        yield Finding("QoS", refused, Grade.wrong)
