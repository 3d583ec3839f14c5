"""The ready scripts in `launch/`: one per machine, for any recipe, from the same renderer as `aitrain submit`."""

from __future__ import annotations

from aitrain.launch.clusters import load
from aitrain.launch.job import Ask, Job
from aitrain.launch.render import render
from aitrain.launch.times import SMALLEST_SIGNAL_S, default_minutes

READY = ("snellius_h100", "lumi_g", "leonardo", "marenostrum5", "jupiter", "generic")
"""Profiles that have a ready script."""


def ready_job(name: str) -> Job:
    """Return the job of a ready script: one node, all of its devices, a day or what the partition allows.

    Args:
        name: Name of a shipped profile.
    """
    profile = load(name, {}).profile  # without the user's own files, on which committed scripts must not depend
    ask = Ask(
        name=name,
        nodes=1,
        devices=profile.device.per_node,
        minutes=default_minutes(profile.limits(profile.partition, profile.qos).max_hours),
        signal_s=SMALLEST_SIGNAL_S,
        account=profile.account,
        partition=profile.partition,
        qos=profile.qos,
    )
    return Job(profile, ask)


def ready_script(name: str) -> str:
    """Return the text of `launch/NAME.sbatch`.

    Args:
        name: Name of a shipped profile.
    """
    return render(ready_job(name))
