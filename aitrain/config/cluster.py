"""Keys of the group `cluster`: where `aitrain submit` runs a job and under which budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Cluster:
    """What `aitrain submit` requests from Slurm; `aitrain train` reads only `restarts`."""

    name: str | None = None
    """Profile of the cluster (`aitrain show cluster` lists them), or the path of your own profile."""

    account: str | None = None
    """Account that the job is billed to; `null` = that of the profile, else `SBATCH_ACCOUNT` in the environment."""

    partition: str | None = None
    """Partition; `null` = that of the profile."""

    qos: str | None = None
    """QoS; `null` = that of the profile."""

    time_min: int | None = None
    """Time limit of the job, in minutes; `null` = 24 hours, or what the partition allows if that is less."""

    signal_s: int | None = None
    """Seconds before the time limit at which Slurm signals the run to save and stop; `null` = three minutes plus the
    time to write 16 bytes per weight at 1 GB/s, but at least five minutes.
    """

    requeue: bool | None = None
    """Whether the job requeues itself until the run is done; `false` = a chain of jobs, each of which waits
    for the previous one. `null` = as the profile says."""

    restarts: int = 3
    """Consecutive restarts without a new checkpoint after which a requeued job, or a chain, gives up."""

    container: str | None = None
    """Container image (`.sif`), or environment file (`.toml`) at CSCS; `null` = no container."""

    venv: str | None = None
    """Virtual environment: a folder, or a `.tar` or `.tar.gz` that every node unpacks to its own storage. `null` = the
    environment that `aitrain submit` runs in; with a container, the one inside it."""

    practice_env: bool = False
    """Also set network variables that projects use at the site but that the centre does not document."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        for key in ("time_min", "signal_s"):
            value = getattr(self, key)
            if value is not None and value < 1:
                yield f"cluster.{key}={value} must be at least 1"
        if self.restarts < 0:
            yield f"cluster.restarts={self.restarts} must not be negative"
        if self.time_min is not None and self.signal_s is not None and self.signal_s >= 60 * self.time_min:
            yield (
                f"cluster.signal_s={self.signal_s} is not less than cluster.time_min={self.time_min}: "
                f"write less than {60 * self.time_min}"
            )
