"""Which rank this process is, detected from its launcher: torchrun, srun, aitrain itself, or none. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from aitrain.errors import LaunchError


@dataclass(frozen=True)
class Ranks:
    """Rank of one process in a run.

    Attributes:
        rank: Number of this process over all nodes, from 0.
        world: Processes over all nodes.
        local_rank: Number of this process on its node, from 0.
        local_world: Processes on this node; the same on every node.
        address: Host name or address on which rank 0 listens.
        port: TCP port on that host.
        launcher: `torchrun`, `srun`, `aitrain` (started by our own launcher) or `none` (one process).
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    launcher: str = "none"

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.world // self.local_world

    @property
    def node(self) -> int:
        """Number of this node, from 0."""
        return self.rank // self.local_world

    @property
    def data_rank(self) -> int:
        """Number of this process among those that see different samples; currently all do."""
        return self.rank

    @property
    def data_size(self) -> int:
        """How many processes see different samples; currently all do."""
        return self.world

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes and prints."""
        return self.rank == 0

    def device_index(self, visible: int) -> int:
        """Return the number of this rank's device among those that it sees.

        Args:
            visible: Devices that this process sees: all of the node, or its own one (`srun --gpus-per-task=1`).

        Raises:
            LaunchError: It sees more than one, but fewer than there are ranks on the node.
        """
        if visible == 1:
            return 0
        if self.local_rank >= visible:
            raise LaunchError(
                f"{self.launcher} started {self.local_world} ranks on this node, but rank {self.rank} sees {visible} "
                "devices: make all of them visible to every rank, or one to each rank (srun --gpus-per-task=1)"
            )
        return self.local_rank

    def environment(self) -> dict[str, str]:
        """Return the variables by which torch.distributed, Lightning and DeepSpeed find the ranks."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def _number(environment: Mapping[str, str], key: str) -> int:
    try:
        return int(environment[key])
    except KeyError:
        raise LaunchError(
            f"{key} is not set, but the other variables of its launcher are: start with torchrun or srun"
        ) from None
    except ValueError:
        raise LaunchError(f"{key}={environment[key]} is not a whole number: it is set by torchrun or srun") from None


def first_host(nodelist: str) -> str:
    """Return the first host of a Slurm node list such as `gcn[12-14,20],login1`.

    Args:
        nodelist: A list in Slurm's bracket notation.

    Raises:
        LaunchError: The text is no node list.

    Source: https://slurm.schedmd.com/scontrol.html, `show hostnames`.
    """
    first = re.match(r"(?:[^,\[\]]|\[[^\[\]]+\])+", nodelist)  # up to the first comma outside brackets
    if first is None:
        raise LaunchError(f"SLURM node list {nodelist!r} cannot be parsed: set MASTER_ADDR to the first host")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group())


def job_number(environment: Mapping[str, str]) -> str | None:
    """Return the number of the Slurm job around this process, `JOB_INDEX` in an array; `None` = there is none.

    Args:
        environment: Variables.
    """
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def detect(environment: Mapping[str, str] | None = None) -> Ranks:
    """Read this process's place from the variables its launcher set.

    Args:
        environment: Variables to read; `os.environ` when absent.

    Returns:
        The place; one rank of one when nothing launched this process.

    Raises:
        LaunchError: The variables contradict each other.

    Source: https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables and
    https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        world = _number(env, "WORLD_SIZE")
        local_world = _number(env, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in env else world
        ranks = Ranks(
            rank=_number(env, "RANK"),
            world=world,
            local_rank=_number(env, "LOCAL_RANK"),
            local_world=local_world,
            address=env.get("MASTER_ADDR", "127.0.0.1"),
            port=_number(env, "MASTER_PORT") if "MASTER_PORT" in env else 0,
            launcher="aitrain" if env.get("AITRAIN_LAUNCHED") else "torchrun",
        )
    elif "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env and _number(env, "SLURM_STEP_NUM_TASKS") > 1:
        world, nodes = _number(env, "SLURM_STEP_NUM_TASKS"), _number(env, "SLURM_STEP_NUM_NODES")
        nodelist = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "127.0.0.1")
        job, step = (_number(env, key) if key in env else 0 for key in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        if nodes < 1 or world % nodes:
            raise LaunchError(
                f"srun started {world} ranks on {nodes} nodes: start the same number on every node (--ntasks-per-node)"
            )
        ranks = Ranks(
            rank=_number(env, "SLURM_PROCID"),
            world=world,
            local_rank=_number(env, "SLURM_LOCALID"),
            local_world=world // nodes,
            address=env.get("MASTER_ADDR") or first_host(nodelist),
            # even, because the supervisors of the ranks use the next port; below the ephemeral range of Linux
            # (32768), spread by job and step so that jobs on one node do not meet
            port=_number(env, "MASTER_PORT") if "MASTER_PORT" in env else 20000 + (job * 31 + step) % 6000 * 2,
            launcher="srun",
        )
    else:
        return Ranks()
    uneven = ranks.local_world < 1 or ranks.world % ranks.local_world
    if uneven or not 0 <= ranks.rank < ranks.world or not 0 <= ranks.local_rank < ranks.local_world:
        raise LaunchError(
            f"{ranks.launcher} started {ranks.world} ranks with {ranks.local_world} on this node, and this process is "
            f"rank {ranks.rank}, here {ranks.local_rank}: "
            "start the same number on every node (--ntasks-per-node or --nproc-per-node)"
        )
    return ranks
