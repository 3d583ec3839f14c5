"""What a cluster does not allow, found before anything is queued: one sentence each, with what to write instead."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aitrain.config import RunConfig
from aitrain.config.logger import Wandb, WandbMode
from aitrain.config.paths import listed
from aitrain.config.trainer import Accelerator
from aitrain.config.values import nearest
from aitrain.io.home import user_path
from aitrain.launch.binaries import (
    TorchBuild,
    container_architecture,
    packages_of,
    program_architecture,
    torch_build,
)
from aitrain.launch.choices import Container, Kind, Network, Runtime
from aitrain.launch.clusters import Cluster
from aitrain.launch.job import Ask, counted
from aitrain.launch.local_slurm import running_site
from aitrain.launch.profile import Area, Limits
from aitrain.launch.slurm import LOCAL
from aitrain.models.chat_templates import named
from aitrain.models.folder import HUB_NAME

WAIT_DAYS = 1
"""Days that a job may wait in the queue, on top of its time limit, before a purge counts as a risk."""

SLURM_WORD = re.compile(r"[\w.@+=-]+")
"""Characters allowed after `--account=` and the like in an #SBATCH line."""

SLURM_PATH = re.compile(r"[\w./@+=:,~-]+")
"""Characters allowed in a path of an #SBATCH line: Slurm expands `%`, and splits at spaces."""

LOST_WITH_THE_JOB = ("/tmp", "/dev/shm", "/var/tmp")
"""Node-local folders, which other nodes cannot see or which are emptied when a job ends."""


@dataclass(frozen=True)
class Place:
    """The environment that a job is submitted from."""

    python: Path
    """The Python that runs `aitrain submit`."""

    packages: Path
    """The folder of its packages."""

    environment: Mapping[str, str]
    """Variables."""


def cluster_faults(config: RunConfig, cluster: Cluster, ask: Ask, run_dir: Path, place: Place) -> list[str]:
    """Return what the cluster does not allow, one sentence each.

    Args:
        config: A checked configuration.
        cluster: The cluster.
        ask: What the job requests.
        run_dir: Run directory, absolute.
        place: Where the job is submitted from.
    """
    return [
        *_word_faults(cluster, ask, run_dir),
        *_budget_faults(cluster, ask),
        *_size_faults(cluster, ask),
        *_time_faults(cluster, ask),
        *_device_faults(config, cluster, ask),
        *_software_faults(config, cluster, place),
        *_network_faults(config, cluster),
        *_reach_faults(config, cluster, run_dir, place),
        *_purge_faults(config, cluster, ask, run_dir, place.environment),
    ]


def _word_faults(cluster: Cluster, ask: Ask, run_dir: Path) -> Iterator[str]:
    """Yield values that Slurm would misread, and names that the profile does not have."""
    profile = cluster.profile
    for key, word in (("account", ask.account), ("partition", ask.partition), ("qos", ask.qos)):
        if word is not None and not SLURM_WORD.fullmatch(word):
            yield f"cluster.{key}={word!r} cannot be used in a job script: use letters, digits and . _ - @ + ="
    for key, path in (("run.dir", run_dir), ("the current directory", Path.cwd())):
        if not SLURM_PATH.fullmatch(str(path)):
            yield f"{key}={path} cannot be used in a job script: use a path of letters, digits and . / _ - @ + = : , ~"
    for key, word, known in (
        ("partition", ask.partition, profile.partitions),
        ("qos", ask.qos, profile.qos_limits),
    ):
        if word is not None and known and word not in known:
            guess = nearest(word, known)
            hint = f"did you mean {guess}?" if guess else f"choose from {', '.join(known)}"
            yield f"cluster.{key}={word} does not exist on {cluster.name}: {hint}"


def _budget_faults(cluster: Cluster, ask: Ask) -> Iterator[str]:
    profile = cluster.profile
    if profile.account_required and ask.account is None:
        example = f" (for example {profile.account_example})" if profile.account_example else ""
        rule = f"{cluster.name} bills every job to an account"
        yield f"cluster.account is missing: {rule}: add --account=ACCOUNT{example}"
    if profile.qos_required and ask.qos is None:
        example = profile.qos_example or ", ".join(profile.qos_limits)
        hint = f" (for example {example})" if example else ""
        yield f"cluster.qos is missing: every job on {cluster.name} needs a QoS: add --qos=QOS{hint}"


def _size_faults(cluster: Cluster, ask: Ask) -> Iterator[str]:
    """Yield more nodes or devices than allowed, or fewer."""
    profile = cluster.profile
    limits, where = profile.limits(ask.partition, ask.qos), _where(cluster, ask)
    count = ask.nodes * ask.devices
    if limits.max_nodes is not None and ask.nodes > limits.max_nodes:
        other = _elsewhere(cluster, ask, "nodes")
        yield f"--nodes={ask.nodes}, but {where} allows {limits.max_nodes}: use at most {limits.max_nodes}{other}"
    if limits.min_nodes is not None and ask.nodes < limits.min_nodes:
        yield f"--nodes={ask.nodes}, but {where} is for {limits.min_nodes} nodes or more: choose another one"
    if limits.max_devices is not None and count > limits.max_devices:
        most = limits.max_devices // ask.devices
        yield (
            f"--nodes={ask.nodes} x {counted(ask.devices, profile.device_word)} are {count}, but {where} allows "
            f"{limits.max_devices}: use at most --nodes={max(1, most)}{_elsewhere(cluster, ask, 'devices')}"
        )


def _time_faults(cluster: Cluster, ask: Ask) -> Iterator[str]:
    if ask.minutes * 60 <= ask.signal_s:
        yield (
            f"cluster.time_min={ask.minutes} leaves no time to train, because the run must save {ask.signal_s} s "
            f"before the limit: write cluster.time_min={ask.signal_s // 60 + 5} or more, or a smaller cluster.signal_s"
        )


def _where(cluster: Cluster, ask: Ask) -> str:
    return f"QoS {ask.qos}" if ask.qos in cluster.profile.qos_limits else f"partition {ask.partition}"


def _elsewhere(cluster: Cluster, ask: Ask, what: str) -> str:
    """Return the partitions and QoS of the cluster that would take the job, as a phrase."""
    profile = cluster.profile

    def takes(limits: Limits) -> bool:
        return (
            (limits.max_nodes is None or ask.nodes <= limits.max_nodes)
            and (limits.min_nodes is None or ask.nodes >= limits.min_nodes)
            and (limits.max_devices is None or ask.nodes * ask.devices <= limits.max_devices)
            and (limits.max_hours is None or ask.minutes <= limits.max_hours * 60)
        )

    limit = f"max_{what}"
    known = [f"cluster.qos={name}" for name, limits in profile.qos_limits.items() if getattr(limits, limit) is not None]
    words = [word for word in known if takes(profile.limits(ask.partition, word.partition("=")[2]))]
    for name, limits in profile.partitions.items():
        if getattr(limits, limit) is not None and takes(profile.limits(name, ask.qos)):
            words.append(f"cluster.partition={name}")
    return f", or {' or '.join(words)}" if words else ""


def _device_faults(config: RunConfig, cluster: Cluster, ask: Ask) -> Iterator[str]:
    """Yield devices that a node lacks, that would be paid for but unused, or that the recipe would not use."""
    profile, word = cluster.profile, cluster.profile.device_word
    there = profile.device.per_node
    limits = profile.limits(ask.partition, ask.qos)
    if ask.devices > there:
        has = f"a node of {cluster.name} has {counted(there, word)}"
        yield f"trainer.devices={ask.devices}, but {has}: use at most {there}"
    elif ask.devices < there and limits.whole_nodes:
        fractions = [name for name, other in profile.partitions.items() if other.whole_nodes is False]
        other = f", or cluster.partition={fractions[0]}" if fractions else ""
        yield (
            f"trainer.devices={ask.devices}, but {_where(cluster, ask)} gives whole nodes of {counted(there, word)} "
            f"and bills all of them: write trainer.devices={there} or leave it out{other}"
        )
    elif ask.devices < there and ask.nodes > 1 and not profile.request.partial_multinode:
        yield (
            f"trainer.devices={ask.devices} on {ask.nodes} nodes: {cluster.name} allocates parts of a node to "
            f"single-node jobs only: write --nodes=1, or leave trainer.devices out"
        )
    on_cpu = config.trainer.accelerator is Accelerator.cpu
    if on_cpu and profile.device.runtime is not Runtime.cpu:
        yield (
            f"trainer.accelerator=cpu would leave the {word}s of {cluster.name} idle while you pay for them: write "
            "trainer.accelerator=auto trainer.precision=bf16"
        )


def _software_faults(config: RunConfig, cluster: Cluster, place: Place) -> Iterator[str]:
    """Yield containers, environments and options that are built for other processors or devices."""
    profile, keys = cluster.profile, config.cluster
    arch, runtime = profile.node.arch.name, profile.device.runtime
    if keys.container is not None:
        image = user_path(keys.container)
        if profile.software.container is Container.none:
            yield (
                f"cluster.container={keys.container}: no container runtime is known at {cluster.name}: leave it out, "
                "or set software.container in your own profile"
            )
        elif not image.exists():
            yield f"cluster.container={keys.container} does not exist: name an image on a file system of the nodes"
        elif (built := container_architecture(image)) not in (None, arch):
            yield (
                f"cluster.container={keys.container} is built for {built}, but the nodes of {cluster.name} are {arch}: "
                f"name an image for {arch}"
            )
    yield from _environment_faults(config, cluster, place)
    if (
        runtime is Runtime.rocm
        and config.model.attention.name == "flash_attention_2"
        and (keys.container is None or keys.venv is not None)
    ):
        yield (
            "model.attention=flash_attention_2: the package flash-attn is built for CUDA, but the devices of "
            f"{cluster.name} are AMD's: write model.attention=sdpa"
        )


def _environment_faults(config: RunConfig, cluster: Cluster, place: Place) -> Iterator[str]:
    """Yield a virtual environment that is absent, or whose Python or torch is built for something else."""
    keys, arch, runtime = config.cluster, cluster.profile.node.arch.name, cluster.profile.device.runtime
    advice = "write cluster.container=IMAGE or cluster.venv=FOLDER"
    if keys.venv is not None:
        venv = user_path(keys.venv)
        if not venv.exists():
            yield f"cluster.venv={keys.venv} does not exist: name a folder or a .tar on a file system of the nodes"
            return
        if venv.is_file():
            if not venv.name.endswith((".tar", ".tar.gz", ".tgz")):
                yield f"cluster.venv={keys.venv} is neither a folder nor an archive: pack it as .tar or .tar.gz"
            return
        if not os.path.lexists(venv / "bin/python"):
            yield f"cluster.venv={keys.venv} is not a virtual environment (no bin/python): name its folder"
            return
        python, packages, said = venv / "bin/python", packages_of(venv), f"cluster.venv={keys.venv}"
        advice = "name another one"
    elif keys.container is not None:
        return
    else:
        python, packages, said = place.python, place.packages, f"this environment ({place.python})"
    if (built := program_architecture(python)) not in (None, arch):
        yield f"{said} is built for {built}, but the nodes of {cluster.name} are {arch}: {advice}"
    inside = torch_build(packages) if packages is not None and keys.container is None else None
    wanted = {Runtime.cuda: TorchBuild.cuda, Runtime.rocm: TorchBuild.rocm}.get(runtime)
    if inside is not None and wanted is not None and inside is not wanted:
        yield f"{said}: its torch is built for {inside.value}, but {cluster.name} has {wanted.value}: {advice}"


def _network_faults(config: RunConfig, cluster: Cluster) -> Iterator[str]:
    """Yield what a job would download or send from nodes without a network."""
    network = cluster.profile.internet.compute
    if network is Network.open:
        return
    rule = "have no network" if network is Network.closed else "may have no network (not documented)"
    where = f"the compute nodes of {cluster.name} {rule}"
    if opens_hub(config):
        yield (
            f"model.path={config.model.path} is fetched from a hub, but {where}: download it to a folder first, and "
            "write model.path=FOLDER model.allow_network=false"
        )
    if opens_wandb(config):
        yield f"logger.mode=online, but {where}: write logger.mode=offline, and `wandb sync` from a login node"


def opens_hub(config: RunConfig) -> bool:
    """Return whether a run fetches its model from a hub.

    Args:
        config: A checked configuration.
    """
    path = str(config.model.path)
    local = path.startswith("asset:") or user_path(path).exists()
    return config.model.allow_network and not local and HUB_NAME.fullmatch(path) is not None


def opens_wandb(config: RunConfig) -> bool:
    """Return whether a run sends its metrics while it runs.

    Args:
        config: A checked configuration.
    """
    return isinstance(config.logger, Wandb) and config.logger.mode is WandbMode.online


def _reach_faults(config: RunConfig, cluster: Cluster, run_dir: Path, desk: Place) -> Iterator[str]:
    """Yield files and folders on node-local storage, or that is emptied when a job ends."""
    site = running_site() if cluster.name == LOCAL else None
    if cluster.profile.device.runtime is Runtime.cpu and site is None:
        return  # the nodes are this machine
    keys = config.cluster
    places = {
        "run.dir": str(run_dir),
        "checkpoint.path": config.checkpoint.path,
        "data.path": config.data.path,
        "data.validation_path": config.data.validation_path,
        "model.path": config.model.path,
        "model.chat_template": None if named(config.model.chat_template) else config.model.chat_template,
        "cluster.container": keys.container,
        "cluster.venv": keys.venv,
        "AITRAIN_CACHE": desk.environment.get("AITRAIN_CACHE"),
        "the Python of this environment": None if keys.venv or keys.container else str(desk.python),
    }
    local: tuple[str, ...] = (*LOST_WITH_THE_JOB, os.path.expandvars(cluster.profile.storage.node_local))
    if site is not None:  # its nodes share this machine's folders, but each has a /tmp of its own
        local = ("/tmp", "/dev/shm") if site.namespaces else ()
    shared = () if site is None else site.shared
    for key, path in ((key, path) for key, given in places.items() if given for path in listed(given)):
        if path.startswith("asset:") or (key == "model.path" and opens_hub(config)):
            continue
        place = Path(os.path.abspath(user_path(path)))
        if any(_inside(place, root) for root in local) and not any(_inside(place, folder) for folder in shared):
            better = "the parallel file system" if site is None else "another folder, or start `local-slurm` from there"
            yield (
                f"{key}={path} is on node-local storage, which other nodes and a requeued job cannot see: move it to "
                f"{better}"
            )


def _purge_faults(
    config: RunConfig, cluster: Cluster, ask: Ask, run_dir: Path, environment: Mapping[str, str]
) -> Iterator[str]:
    """Yield a run directory that the site would delete before the job can end."""
    folders = [("run.dir", run_dir)]
    if config.checkpoint.path is not None:
        folders.append(("checkpoint.path", Path(os.path.abspath(user_path(config.checkpoint.path)))))
    days = math.ceil(ask.minutes / 60 / 24) + WAIT_DAYS
    for key, folder in folders:
        for name, area in cluster.profile.storage.areas.items():
            root = _expanded(area.path, environment)
            if root and area.purge_days is not None and area.purge_days <= days and _inside(folder, root):
                yield (
                    f"{key}={folder} is on {name} ({area.path}), where files are deleted after {area.purge_days} days, "
                    f"but this job can end {days} days from now: choose another folder, or a shorter --time"
                )


def _expanded(path: str, environment: Mapping[str, str]) -> str:
    """Return a path with its leading variable filled in; empty when that is not set."""
    if not path.startswith("$"):
        return path
    name, _, rest = path[1:].partition("/")
    return f"{environment[name]}/{rest}".rstrip("/") if environment.get(name) else ""


def _inside(folder: Path, root: str) -> bool:
    return root.startswith("/") and folder.is_relative_to(root)


def placeholder_fault(cluster: Cluster) -> str | None:
    """Return why no job can be submitted to a machine that does not exist yet, or `None`.

    Args:
        cluster: The cluster.
    """
    if cluster.profile.kind is not Kind.placeholder:
        return None
    return (
        f"cluster {cluster.name} is a placeholder: its hardware is not published, so nothing can be submitted: choose "
        "another cluster, or add --dry-run to look at a script"
    )


def purged_area(cluster: Cluster, folder: Path, environment: Mapping[str, str]) -> Area | None:
    """Return the area with a purge that a folder is in, or `None`.

    Args:
        cluster: The cluster.
        folder: An absolute path.
        environment: Variables.
    """
    for area in cluster.profile.storage.areas.values():
        if area.purge_days is not None and _inside(folder, _expanded(area.path, environment)):
            return area
    return None
