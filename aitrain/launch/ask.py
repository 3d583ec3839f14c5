"""What a job trains and requests from Slurm, as values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """What a job trains, as far as its script needs it."""

    recipe: str
    """Recipe and overrides, as the user wrote them."""

    directory: str
    """Run directory, an absolute path."""

    work_directory: str
    """Directory that relative paths of the recipe start from."""

    python: str = "python3"
    """The Python that has aitrain: on the nodes, or inside the container."""

    container: str | None = None
    """Container image or environment file."""

    venv_archive: str | None = None
    """Archive of the virtual environment, to be unpacked on every node."""

    binds: tuple[str, ...] = ()
    """Folders that a container must see."""

    opens_hub: bool = False
    """Whether the model is fetched from a hub during the job."""

    opens_wandb: bool = False
    """Whether metrics are sent while the job runs."""

    cache: str | None = None
    """`AITRAIN_CACHE` of the user, if it is set."""

    address: str | None = None
    """Address of rank 0; `None` = the first node of the job."""

    sweep: str | None = None
    """Folder of a sweep, whose runs are in it by number; `None` = one run."""

    runs: int = 1
    """Runs of the sweep."""


@dataclass(frozen=True)
class Ask:
    """What a job requests from Slurm."""

    name: str
    """Name of the job."""

    nodes: int
    """Nodes."""

    devices: int
    """Devices per node."""

    minutes: int
    """Time limit."""

    signal_s: int
    """Seconds before the time limit at which Slurm signals the run to stop."""

    account: str | None = None
    """Account."""

    partition: str | None = None
    """Partition."""

    qos: str | None = None
    """QoS."""

    practice_env: bool = False
    """Whether undocumented network variables are also set."""

    requeue: bool = True
    """Whether a job may be put back into the queue."""
