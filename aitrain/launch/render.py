"""A job as the text of an sbatch script: the template in `launch/`, filled in. No side effects."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from aitrain.launch.job import Job
from aitrain.launch.times import slurm_time

TEMPLATES = Path(__file__).parents[1] / "_launch"


@cache
def environment() -> Environment:
    """Return the environment that reads the templates in `launch/`, for bash and configuration files."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # bash, not HTML; `| sh` quotes
    )
    made.filters |= {"sh": shlex.quote, "slurm_time": slurm_time}
    return made


def render(job: Job) -> str:
    """Return the job script.

    Args:
        job: The job.
    """
    return environment().get_template("job.sbatch.jinja").render(job=job).lstrip()
