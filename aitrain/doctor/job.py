"""`aitrain doctor --job`: starts a rank per device on every node of this allocation, or is one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from aitrain.dist import heartbeat
from aitrain.dist.ranks import Ranks, detect
from aitrain.doctor.finding import exit_code, text_of
from aitrain.doctor.judge import judge
from aitrain.errors import EXIT_DONE, LaunchError
from aitrain.launch.clusters import Cluster

HANG_S = 60.0
"""Seconds without progress after which a node counts as broken."""


def examine(cluster: Cluster | None) -> int:
    """Measure every node of this allocation.

    Args:
        cluster: The cluster, for its figures; `None` = not known.

    Returns:
        The exit code: 4 when a node is slow or broken.

    Raises:
        LaunchError: This is no allocation.
    """
    if "SLURM_JOB_ID" not in os.environ:
        raise LaunchError("--job checks the nodes of an allocation: run it inside salloc or sbatch")
    ranks = detect()
    if ranks.launcher == "none" and "AITRAIN_DOCTOR" not in os.environ:
        return _start(cluster)
    return _as_rank(ranks, cluster)


def _start(cluster: Cluster | None) -> int:
    """Start the ranks, as many on each node as it has devices for this job."""
    devices = os.environ.get("SLURM_GPUS_ON_NODE") or os.environ.get("SLURM_NTASKS_PER_NODE") or "1"
    count = int(devices.split("(")[0])
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    environment = {**os.environ, "AITRAIN_DOCTOR": "1"}
    environment.pop("SLURM_EXPORT_ENV", None)
    words = [] if cluster is None else ["--cluster", cluster.name]
    command = ["srun", f"--nodes={nodes}", f"--ntasks={nodes * count}", f"--ntasks-per-node={count}"]
    command += ["--overlap", "--kill-on-bad-exit=0", "--wait=10", *(cluster.profile.request.srun if cluster else [])]
    command += [sys.executable, "-m", "aitrain", "doctor", "--job", *words]
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    except FileNotFoundError:
        raise LaunchError("srun is not found here, so the nodes of this job cannot be reached") from None


def _as_rank(ranks: Ranks, cluster: Cluster | None) -> int:
    from aitrain.doctor.measure import measure

    heartbeat.tell(hang_s=HANG_S)
    found = measure(ranks, Path.cwd())
    if not ranks.is_first:
        return EXIT_DONE
    width = max(len(each.node) for each in found)
    for each in found:
        memory = "" if each.memory_gb is None else f", {each.memory_gb:.0f} GB"
        print(f"rank {each.rank:>4}  {each.node:<{width}}  {each.tflops:8.3g} TFLOP/s  {each.device}{memory}")
    findings = judge(found, cluster)
    print(text_of(findings))
    return exit_code(findings, in_job=True)
