"""A job as the text of an sbatch script: the template in `launch/`, filled in. Pure."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from aitrain.launch.job import Job
from aitrain.launch.times import slurm_time

TEMPLATES = Path(__file__).parents[1] / "_launch"


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # bash, not HTML; `| sh` quotes
    )
    environment.filters |= {"sh": shlex.quote, "slurm_time": slurm_time}
    return environment.get_template("job.sbatch.jinja")


def render(job: Job) -> str:
    """Return the job script.

    Args:
        job: What it asks for and does.
    """
    return _template().render(job=job).lstrip()
