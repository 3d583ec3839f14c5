"""Submits a job to Slurm: writes its folder, calls sbatch, and reports what was queued."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aitrain.config import RunConfig
from aitrain.config.run import SWEEP
from aitrain.errors import EXIT_DONE, AitrainError, LaunchError
from aitrain.io import write_text, writing
from aitrain.launch.clusters import Cluster, warning
from aitrain.launch.job import Job, counted
from aitrain.launch.refusals import purged_area
from aitrain.launch.render import render
from aitrain.launch.slurm import Slurm
from aitrain.launch.times import slurm_time
from aitrain.trainer.run_directory import RunDirectory, fixed


@dataclass
class Wanted:
    """A run to submit."""

    words: list[str]
    """Its overrides."""

    config: RunConfig
    """The composed recipe, flags included."""

    cluster: Cluster
    """The cluster it runs on."""


def remarks(config: RunConfig, cluster: Cluster, job: Job) -> Iterator[str]:
    """Yield warnings about a job that can run."""
    wanted, limit = config.cluster.time_min, job.ask.minutes
    if wanted is not None and wanted > limit:
        yield (
            f"note: {slurm_time(wanted)} is more than {job.ask.partition or 'the partition'} allows "
            f"({slurm_time(limit)}): the run becomes a chain of about {-(-wanted // limit)} jobs, one after the other, "
            "in the same run directory"
        )
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


def hand_in(wanted: list[Wanted], cluster: Cluster, job: Job) -> int:
    """Write the job folder, call sbatch, and report what was queued; if that fails, the folder is removed."""
    slurm = Slurm(cluster.name)
    if not slurm.is_here:
        raise LaunchError(
            f"sbatch is not found here: run this on a login node of {cluster.name}, or add --dry-run to see the script"
        )
    assert job.run is not None, "only a ready script has none"
    folder = Path(job.run.sweep or job.run.directory)
    script = folder / "job.sbatch"
    directories: list[RunDirectory] = []
    try:
        directories = [RunDirectory.create(fixed(each.config)) for each in wanted]
        with writing(str(script), "free space there, or choose another run.dir"):
            write_text(script, render(job))
            if job.run.sweep is not None:
                write_text(folder / SWEEP, json.dumps(_differences(wanted), indent=1) + "\n")
        number = slurm.submit(script)
    except AitrainError:  # not after Ctrl-C: the job may be in the queue by then, and its folder must be there
        shutil.rmtree(folder, ignore_errors=True)
        raise
    facts = {"cluster": cluster.name, "nodes": job.ask.nodes, "devices": job.devices}
    for index, directory in enumerate(directories):
        directory.event("submitted", job=number if job.run.sweep is None else f"{number}_{index}", **facts)
    size = f"{counted(job.ask.nodes, 'node')} x {counted(job.devices, job.device_word)}"
    each = "" if job.run.sweep is None else f", an array of {len(wanted)}: each"
    log = (
        f"{folder}/logs/slurm-{number}.out"
        if job.run.sweep is None
        else f"{folder}/INDEX/logs/slurm-{number}_INDEX.out"
    )
    print(
        f"Submitted job {number} to {cluster.name}{each}: {size}, {slurm_time(job.ask.minutes)}, at most {job.cost}\n"
        f"run     {folder}\n"
        f"script  {script}\n"
        f"log     {log}\n"
        "The data was not read; `aitrain check` does that."
    )
    if job.run.sweep is not None:
        print(f"`aitrain runs {folder}` compares the runs; when they have ended, {folder}/results.txt does too.")
    return EXIT_DONE


def _differences(wanted: list[Wanted]) -> list[str]:
    """Return the overrides of each run that are not common to all."""
    shared = set.intersection(*(set(each.words) for each in wanted))
    return [" ".join(word for word in each.words if word not in shared) for each in wanted]
