"""`aitrain submit`: checks a recipe against a cluster, writes the job folder, and hands it to sbatch."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aitrain.config import RunConfig
from aitrain.config.adapter import NoAdapter
from aitrain.config.paths import absolute_paths
from aitrain.dist.ranks import Ranks
from aitrain.errors import EXIT_DONE, AitrainError, DataError, LaunchError, RecipeError
from aitrain.io import write_text, writing
from aitrain.io.home import user_path
from aitrain.launch.choices import Runtime
from aitrain.launch.clusters import Cluster, load, names, warning
from aitrain.launch.job import Ask, Job, Run, counted, smallest_set
from aitrain.launch.refusals import Place, cluster_faults, opens_hub, opens_wandb, placeholder_fault, purged_area
from aitrain.launch.render import render
from aitrain.launch.times import default_minutes, minutes, notice_s, slurm_time
from aitrain.models.folder import ModelFacts, inspect
from aitrain.preflight import Machine, data_faults, local_path, machine_faults, model_faults, room_faults
from aitrain.recipe import compose
from aitrain.trainer.run_directory import RunDirectory

ADAPTER_SHARE = 0.02
"""Share of a model's weights that an adapter is assumed to train; `cluster.signal_s` overrules what follows from it."""


@dataclass(frozen=True)
class Flags:
    """The words of `aitrain submit` beside recipe and keys; `None` = not given."""

    cluster: str | None = None
    """`--cluster`: the key `cluster.name`."""

    nodes: int | None = None
    """`--nodes`."""

    time: str | None = None
    """`--time`, in Slurm's notation: the key `cluster.time_min`."""

    account: str | None = None
    """`--account`: the key `cluster.account`."""

    partition: str | None = None
    """`--partition`: the key `cluster.partition`."""

    qos: str | None = None
    """`--qos`: the key `cluster.qos`."""


def submit(recipe: str, overrides: Sequence[str], flags: Flags, dry_run: bool) -> int:
    """Submit a recipe as a Slurm job, or show the script.

    Args:
        recipe: Name or path of a recipe.
        overrides: Words `key=value`.
        flags: The other words.
        dry_run: Print the script on standard output; write and submit nothing.

    Returns:
        The exit code.

    Raises:
        AitrainError: Recipe, cluster or Slurm do not allow it; nothing has been written or queued then.
    """
    config, cluster = _configuration(recipe, overrides, flags)
    if not dry_run and (fault := placeholder_fault(cluster)):
        raise RecipeError(fault)
    model = inspect(config.model)
    job = plan(config, cluster, flags.nodes, shlex.join([recipe, *overrides]), model)
    _refuse(config, cluster, job.ask, model)
    for note in _remarks(config, cluster):
        print(note, file=sys.stderr)
    if dry_run:
        print(render(job), end="")
        return EXIT_DONE
    return _hand_in(config, cluster, job)


def _configuration(recipe: str, overrides: Sequence[str], flags: Flags) -> tuple[RunConfig, Cluster]:
    """Return the recipe with the flags in its group `cluster`, and the cluster."""
    config = compose(recipe, overrides)
    twice = [
        f"--{flag} and {key}=... set the same thing: give one of them"
        for flag, key in (
            ("cluster", "cluster.name"),
            ("time", "cluster.time_min"),
            ("account", "cluster.account"),
            ("partition", "cluster.partition"),
            ("qos", "cluster.qos"),
            ("nodes", "trainer.nodes"),
        )
        if getattr(flags, flag) is not None and any(word.startswith(f"{key}=") for word in overrides)
    ]
    if twice:
        raise RecipeError(twice)
    keys = config.cluster
    keys.name = flags.cluster or keys.name
    keys.account = flags.account or keys.account
    keys.partition = flags.partition or keys.partition
    keys.qos = flags.qos or keys.qos
    keys.time_min = keys.time_min if flags.time is None else minutes(flags.time)
    if keys.name is None:
        raise RecipeError(f"--cluster is missing: add --cluster NAME; there are {', '.join(names())}")
    if "/" in keys.name or keys.name.endswith((".yaml", ".yml")):
        keys.name = _absolute(keys.name)
    return config, load(str(keys.name))


def plan(config: RunConfig, cluster: Cluster, nodes: int | None, recipe: str, model: ModelFacts) -> Job:
    """Return the job of a recipe on a cluster; the configuration gets its run directory, an absolute path.

    Args:
        config: A checked configuration; its `run.dir` is set.
        cluster: The cluster.
        nodes: Nodes; `None` = `trainer.nodes`, else 1.
        recipe: Recipe and overrides as the user wrote them.
        model: What is known about the model.

    Raises:
        RecipeError: The nodes contradict the recipe.
    """
    keys, profile = config.cluster, cluster.profile
    if nodes is not None and nodes < 1:
        raise RecipeError(f"--nodes={nodes} must be at least 1")
    if nodes is not None and config.trainer.nodes not in (None, nodes):
        raise RecipeError(
            f"--nodes={nodes}, but the recipe says trainer.nodes={config.trainer.nodes}: take that line out of the "
            f"recipe, or write --nodes={config.trainer.nodes}"
        )
    name = re.sub(r"[^\w.+-]+", "-", config.run.name or "aitrain")
    config.run.dir = os.path.abspath(user_path(config.run.dir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"))
    partition, qos = keys.partition or profile.partition, keys.qos or profile.qos
    ask = Ask(
        name=name,
        nodes=nodes or config.trainer.nodes or 1,
        devices=config.trainer.devices or profile.device.per_node,
        minutes=keys.time_min or default_minutes(profile.limits(partition, qos).max_hours),
        signal_s=keys.signal_s or notice_s(_trained_weights(config, model)),
        account=keys.account or profile.account or os.environ.get("SBATCH_ACCOUNT"),
        partition=partition,
        qos=qos,
        practice_env=keys.practice_env,
    )
    notes = [note for note in (warning(profile),) if note]
    return Job(profile, ask, _run(config, recipe), tuple(notes))


def _trained_weights(config: RunConfig, model: ModelFacts) -> int | None:
    if model.parameters is None:
        return None
    return model.parameters if isinstance(config.adapter, NoAdapter) else int(ADAPTER_SHARE * model.parameters)


def _run(config: RunConfig, recipe: str) -> Run:
    """Return what the job trains, with the folders that a container must see."""
    keys, directory = config.cluster, str(config.run.dir)
    container = _absolute(keys.container)
    venv = _absolute(keys.venv)
    archive = venv if venv is not None and Path(venv).is_file() else None
    python = sys.executable if container is None else "python3"
    if venv is not None and archive is None:
        python = f"{venv}/bin/python"
    cache = os.environ.get("AITRAIN_CACHE")
    return Run(
        recipe=recipe,
        directory=directory,
        work_directory=os.getcwd(),
        python=python,
        container=container,
        venv_archive=archive,
        binds=_binds(config, venv, cache),
        opens_hub=opens_hub(config),
        opens_wandb=opens_wandb(config),
        cache=None if cache is None else os.path.abspath(cache),
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(user_path(path))


def _binds(config: RunConfig, venv: str | None, cache: str | None) -> tuple[str, ...]:
    """Return the folders that the run reads and writes; each must exist when the container starts."""
    folders = [str(config.run.dir), os.getcwd()]
    files = [config.data.path, config.data.validation_path, config.model.chat_template, config.checkpoint.path, venv]
    for given in [*files, cache, None if opens_hub(config) else config.model.path]:
        if given is None:
            continue
        try:
            path = Path(os.path.abspath(local_path(given)))
        except AitrainError:  # an asset that is not there: told among the refusals
            continue
        path = path if path.is_dir() else path.parent
        if path.is_dir():
            folders.append(str(path))
    return smallest_set(folders)


def _refuse(config: RunConfig, cluster: Cluster, ask: Ask, model: ModelFacts) -> None:
    """Refuse what cannot work there, with every reason at once; data faults alone have their own exit code."""
    place = Place(Path(sys.executable), Path(sysconfig.get_path("purelib")), os.environ)
    run_dir = Path(str(config.run.dir))
    faults = list(_taken(run_dir))
    faults += cluster_faults(config, cluster, ask, run_dir, place)
    on_cpu = cluster.profile.device.runtime is Runtime.cpu
    node = Machine(0 if on_cpu else max(ask.devices, cluster.profile.device.per_node), True)
    ranks = Ranks(world=ask.nodes * ask.devices, local_world=ask.devices, launcher="srun")
    own = config.cluster.container is None and config.cluster.venv is None
    faults += machine_faults(config, here=node, ranks=ranks, packages=own)
    # a hub name without network is the cluster's fault, and told there
    faults += model_faults(config, model) + room_faults(config)
    data = data_faults(config)
    if faults:
        raise RecipeError(list(dict.fromkeys([*faults, *data])))
    if data:
        raise DataError("\n".join(data))


def _taken(run_dir: Path) -> Iterator[str]:
    """Yield why a run directory cannot be a new one."""
    if not run_dir.exists() and not run_dir.is_symlink():
        return
    if (run_dir / "job.sbatch").is_file() and (run_dir / "run.yaml").is_file():
        job = RunDirectory(run_dir).last_of("submitted").get("job")
        told = f" (job {job} was submitted for it)" if job else ""
        yield (
            f"run.dir={run_dir} is in use{told}: choose a new one, or continue that run with `sbatch "
            f"{run_dir}/job.sbatch`"
        )
    elif (run_dir / "run.yaml").is_file():
        yield f"run.dir={run_dir} belongs to another run: choose a new one"
    else:
        yield f"run.dir={run_dir} exists already: choose a new one"


def _remarks(config: RunConfig, cluster: Cluster) -> Iterator[str]:
    """Yield what the user should know, though the job can run."""
    if area := purged_area(cluster, Path(str(config.run.dir)), os.environ):
        yield (
            f"note: {config.run.dir} is on {area.path}, where files are deleted after {area.purge_days} days: "
            "copy what you want to keep"
        )
    if note := warning(cluster.profile):
        yield f"note: {note}"
    for name in sorted(os.environ):
        if name.startswith("SBATCH_") and name != "SBATCH_ACCOUNT":
            yield f"note: {name}={os.environ[name]} is ignored: it would override the job script"


def _hand_in(config: RunConfig, cluster: Cluster, job: Job) -> int:
    """Write the job folder, call sbatch, and say what was queued; when that fails, the folder is gone again."""
    if shutil.which("sbatch") is None:
        raise LaunchError(
            f"sbatch is not found here: run this on a login node of {cluster.name}, or add --dry-run to see the script"
        )
    directory = RunDirectory.create(absolute_paths(config))
    script = directory.path / "job.sbatch"
    try:
        with writing(str(script), "free space there, or choose another run.dir"):
            write_text(script, render(job))
        number = _sbatch(script)
    except AitrainError:  # not after Ctrl-C: the job may be in the queue by then, and its folder must be there
        shutil.rmtree(directory.path, ignore_errors=True)
        raise
    directory.event("submitted", job=number, cluster=cluster.name, nodes=job.ask.nodes, devices=job.devices)
    size = f"{counted(job.ask.nodes, 'node')} x {counted(job.devices, job.device_word)}"
    print(
        f"Submitted job {number} to {cluster.name}: {size}, {slurm_time(job.ask.minutes)}, at most {job.cost}\n"
        f"run     {directory.path}\n"
        f"script  {script}\n"
        f"log     {directory.path}/logs/slurm-{number}.out\n"
        "The data was not read; `aitrain check` does that."
    )
    return EXIT_DONE


def _sbatch(script: Path) -> str:
    """Hand a script to Slurm and return the number of the job.

    Variables of sbatch would win over the lines of the script, so it sees none of them.

    Source: https://slurm.schedmd.com/sbatch.html, "INPUT ENVIRONMENT VARIABLES".
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SBATCH_")}
    command = ["sbatch", "--parsable", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    number = done.stdout.strip().split(";")[0]
    if done.returncode or not number.isdigit():
        said = " ".join(line.removeprefix("sbatch: ").strip() for line in done.stderr.splitlines() if line.strip())
        raise LaunchError(f"sbatch refused the job: {said or f'exit code {done.returncode}'}")
    return number
