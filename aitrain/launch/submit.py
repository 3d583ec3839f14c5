"""`aitrain submit`: checks a recipe against a cluster, writes the job folder, and calls sbatch."""

from __future__ import annotations

import os
import re
import shlex
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aitrain.config import RunConfig
from aitrain.config.adapter import NoAdapter
from aitrain.config.paths import listed
from aitrain.dist.ranks import Ranks
from aitrain.errors import EXIT_DONE, AitrainError, DataError, RecipeError
from aitrain.io.home import user_path
from aitrain.launch.choices import Runtime
from aitrain.launch.clusters import Cluster, load, names, warning
from aitrain.launch.hand_in import Wanted, hand_in, remarks
from aitrain.launch.job import Ask, Job, Run, smallest_set
from aitrain.launch.local_slurm import running_site
from aitrain.launch.refusals import Place, cluster_faults, opens_hub, opens_wandb, placeholder_fault
from aitrain.launch.render import render
from aitrain.launch.slurm import LOCAL
from aitrain.launch.times import default_minutes, minutes, notice_s
from aitrain.models.assets import local_path
from aitrain.models.folder import ModelFacts
from aitrain.preflight import Machine, data_faults, look_at_model, machine_faults, model_faults, room_faults
from aitrain.recipe import compose
from aitrain.sweep import sweep
from aitrain.trainer.run_directory import RunDirectory

ADAPTER_SHARE = 0.02
"""Share of a model's weights that an adapter is assumed to train; `cluster.signal_s` overrides the result."""


@dataclass(frozen=True)
class Flags:
    """The options of `aitrain submit` other than recipe and keys; `None` = not given."""

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
        flags: The other options.
        dry_run: Print the script on standard output; write and submit nothing.

    Returns:
        The exit code.

    Raises:
        AitrainError: Recipe, cluster or Slurm do not allow it; nothing has been written or queued then.
    """
    return _submit([_wanted(recipe, overrides, flags)], shlex.join([recipe, *overrides]), flags, dry_run)


def submit_sweep(recipe: str, overrides: Sequence[str], flags: Flags, dry_run: bool) -> int:
    """Submit every combination of lists and ranges as one job array, or show its script.

    Args:
        recipe: Name or path of a recipe.
        overrides: Words `key=value`, with lists or ranges of alternatives; `run.dir` is the folder of the whole sweep.
        flags: The other options.
        dry_run: Print the script on standard output; write and submit nothing.

    Returns:
        The exit code.

    Raises:
        AitrainError: A combination is refused, or they ask for different jobs; nothing has been written or queued then.
    """
    wanted = [_wanted(recipe, words, flags) for words in sweep(overrides)]
    places = {each.config.run.dir for each in wanted}
    if len(places) > 1:
        raise RecipeError("run.dir differs between the runs of the sweep: give one folder for the sweep, or none")
    name = re.sub(r"[^\w.+-]+", "-", wanted[0].config.run.name or "aitrain")
    folder = user_path(places.pop() or f"runs/{name}-sweep-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    for number, each in enumerate(wanted):
        each.config.run.dir = f"{folder}/{number}"
        if each.config.checkpoint.path is not None:
            each.config.checkpoint.path = f"{user_path(each.config.checkpoint.path).absolute()}/{number}"
    return _submit(wanted, shlex.join([recipe, *overrides, "-m"]), flags, dry_run, folder)


def _submit(wanted: list[Wanted], words: str, flags: Flags, dry_run: bool, folder: Path | None = None) -> int:
    """Check all runs, then write and submit their job; with a folder they are a sweep."""
    cluster = wanted[0].cluster
    if not dry_run and (fault := placeholder_fault(cluster)):
        raise RecipeError(fault)
    jobs = []
    if folder is not None and folder.exists():
        raise RecipeError(f"run.dir={folder} exists already: choose a new folder for the sweep")
    for each in wanted:
        model = look_at_model(each.config)
        jobs.append(plan(each.config, each.cluster, flags.nodes, words, model))
        _refuse(each.config, each.cluster, jobs[-1].ask, model)
    job = jobs[0] if folder is None else _array(jobs, folder)
    for note in remarks(wanted[0].config, cluster, job):
        print(note, file=sys.stderr)
    if dry_run:
        print(render(job), end="")
        return EXIT_DONE
    return hand_in(wanted, cluster, job)


def _array(jobs: list[Job], folder: Path) -> Job:
    """Return the one job of a sweep, whose tasks must ask for the same."""
    asks = [replace(job.ask, name="", signal_s=0) for job in jobs]
    runs = [job.run for job in jobs if job.run is not None]
    alike = [(run.container, run.venv_archive, run.python, run.opens_hub, run.opens_wandb) for run in runs]
    if len(set(asks)) > 1 or len(set(alike)) > 1:
        raise RecipeError(
            "The runs of the sweep ask for different jobs (nodes, devices, time, account, container, ...), but they "
            "are one job array: submit them one by one, or sweep over other keys"
        )
    ask = replace(jobs[0].ask, signal_s=max(job.ask.signal_s for job in jobs))
    binds = smallest_set([str(folder), *(place for run in runs for place in run.binds)])
    return replace(jobs[0], ask=ask, run=replace(runs[0], sweep=str(folder), runs=len(jobs), binds=binds))


def _wanted(recipe: str, overrides: Sequence[str], flags: Flags) -> Wanted:
    return Wanted(list(overrides), *_configuration(recipe, overrides, flags))


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
        raise RecipeError(f"--cluster is missing: add --cluster NAME; choose from {', '.join(names())}")
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
    requeue = profile.request.requeue if keys.requeue is None else keys.requeue
    ask = Ask(
        # jobs of a chain wait for all jobs of their name, so no other run may have it
        name=name if requeue else re.sub(r"[^\w.+-]+", "-", Path(config.run.dir).name),
        nodes=nodes or config.trainer.nodes or 1,
        devices=config.trainer.devices or profile.device.per_node,
        minutes=_minutes(keys.time_min, profile.limits(partition, qos).max_hours),
        signal_s=keys.signal_s or notice_s(_trained_weights(config, model)),
        account=keys.account or profile.account or os.environ.get("SBATCH_ACCOUNT"),
        partition=partition,
        qos=qos,
        practice_env=keys.practice_env,
        requeue=requeue,
    )
    notes = [note for note in (warning(profile),) if note]
    run = _run(config, recipe)
    site = running_site() if cluster.name == LOCAL else None
    if site is not None and not site.namespaces:
        run = replace(run, address="127.0.0.1")  # the names of its nodes are not known to this host
    return Job(profile, ask, run, tuple(notes))


def _minutes(wanted: int | None, max_hours: float | None) -> int:
    """Return the time limit of one job; a longer run continues in the next one."""
    if wanted is None:
        return default_minutes(max_hours)
    return wanted if max_hours is None else min(wanted, max(1, int(60 * max_hours)))


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
    held_out = config.data.validation_path
    files = [*listed(config.data.path), *([] if held_out is None else listed(held_out))]
    files += [each for each in (config.model.chat_template, config.checkpoint.path, venv) if each is not None]
    for given in [*files, cache, None if opens_hub(config) else config.model.path]:
        if given is None:
            continue
        try:
            path = Path(os.path.abspath(local_path(given)))
        except AitrainError:  # a missing asset: reported with the refusals
            continue
        path = path if path.is_dir() else path.parent
        if path.is_dir():
            folders.append(str(path))
    return smallest_set(folders)


def _refuse(config: RunConfig, cluster: Cluster, ask: Ask, model: ModelFacts) -> None:
    """Refuse what cannot work there, with all reasons; data faults alone have their own exit code."""
    place = Place(Path(sys.executable), Path(sysconfig.get_path("purelib")), os.environ)
    run_dir = Path(str(config.run.dir))
    faults = list(_taken(run_dir))
    faults += cluster_faults(config, cluster, ask, run_dir, place)
    on_cpu = cluster.profile.device.runtime is Runtime.cpu
    node = Machine(0 if on_cpu else max(ask.devices, cluster.profile.device.per_node), True)
    ranks = Ranks(world=ask.nodes * ask.devices, local_world=ask.devices, launcher="srun")
    own = config.cluster.container is None and config.cluster.venv is None
    faults += machine_faults(config, here=node, ranks=ranks, packages=own)
    # a hub name without network is a refusal of the cluster, reported there
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
