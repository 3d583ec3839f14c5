"""The facts of a cluster as typed values: what a job may request, how, and where each value comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from aitrain.launch.choices import (
    Address,
    Arch,
    Confidence,
    Container,
    DeviceFlag,
    Kind,
    Network,
    Runtime,
    Tasks,
)


@dataclass
class Evidence:
    """Where some values come from."""

    keys: list[str] = field(default_factory=list)
    """Keys, or prefixes of keys, that this source covers; the longest match wins."""

    confidence: Confidence = Confidence.yours
    """How reliable they are."""

    source: str = ""
    """Address or name of the source."""

    note: str | None = None
    """Additional remark."""


@dataclass
class Limits:
    """Limits of one job in a partition or QoS; `null` = not known, so it is not checked."""

    max_hours: float | None = None
    """Longest time limit, in hours."""

    max_nodes: int | None = None
    """Most nodes of one job."""

    min_nodes: int | None = None
    """Fewest nodes of one job."""

    max_devices: int | None = None
    """Most devices of one job, over all nodes."""

    whole_nodes: bool | None = None
    """Whether a job gets, and pays for, whole nodes only; `null` = as `request.whole_nodes`."""

    note: str | None = None
    """Remark for users."""


@dataclass
class Device:
    """One device as Slurm and PyTorch see it: a GPU, or half of an MI250X."""

    runtime: Runtime = Runtime.cuda
    """Programming platform."""

    model: str | None = None
    """Its name."""

    memory_gb: float | None = None
    """Memory of one device, in GB."""

    per_node: int = 4
    """Devices per node."""


@dataclass
class Node:
    """One node of the partition."""

    arch: Arch = Arch.x86_64
    """Instruction set: programs and containers must be built for it."""

    count: int | None = None
    """Nodes in the partition."""

    cores: int | None = None
    """CPUs of a node that jobs may use, as Slurm counts them."""

    cores_per_device: int = 8
    """CPUs that a job takes for each device: `--cpus-per-task`."""

    memory_gb: float | None = None
    """Memory that jobs may use, in GB."""


@dataclass
class Request:
    """How a job requests resources."""

    device_flag: DeviceFlag = DeviceFlag.gpus_per_node
    """Flag for devices."""

    tasks: Tasks = Tasks.per_device
    """How the tasks of the allocation are counted."""

    whole_nodes: bool = False
    """Whether a job gets, and pays for, whole nodes only."""

    partial_multinode: bool = True
    """Whether a job on several nodes may use a part of each."""

    exclusive: bool = False
    """Whether a job that uses all devices of its nodes requests `--exclusive`."""

    memory_full_node: str | None = None
    """`--mem` when all devices of a node are used; `null` = memory follows the devices or cores."""

    memory_per_device_mb: int | None = None
    """Memory per device when a part of a node is used, in MiB; `null` = memory follows the devices or cores."""

    cpu_bind: str | None = None
    """`--cpu-bind` of srun on any job; `null` = Slurm's own binding."""

    cpu_bind_full_node: str | None = None
    """`--cpu-bind` of srun when all devices of a node are used, in the order of the devices."""

    requeue: bool = True
    """Whether a job may put itself back into the queue; if not, jobs of one run follow each other (singleton)."""

    sbatch: list[str] = field(default_factory=list)
    """More flags of sbatch."""

    srun: list[str] = field(default_factory=list)
    """More flags of srun."""


@dataclass
class Fabric:
    """The network between nodes."""

    type: str | None = None
    """Its kind."""

    nics_per_node: int | None = None
    """Network adapters per node."""

    gbps_per_node: float | None = None
    """Bandwidth of one node, in Gbit/s and one direction."""

    topology: str | None = None
    """How the nodes are wired."""

    rendezvous: Address = Address.hostname
    """How the address of rank 0 is formed."""

    environment: dict[str, str] = field(default_factory=dict)
    """Variables for NCCL, RCCL and the like that the centre itself prescribes; `null` removes one."""

    environment_practice: dict[str, str] = field(default_factory=dict)
    """Variables that projects use there; set only with `cluster.practice_env=true`."""


@dataclass
class Internet:
    """Connections to the outside."""

    login: Network = Network.unknown
    """From login nodes."""

    compute: Network = Network.unknown
    """From compute nodes."""


@dataclass
class Software:
    """Modules and containers."""

    setup: list[str] = field(default_factory=list)
    """Lines of shell that come first in a job, for instance `module purge`."""

    modules: list[str] = field(default_factory=list)
    """Modules that every job loads: those that your virtual environment was built with."""

    container: Container = Container.none
    """Container runtime."""

    container_command: str | None = None
    """Command that starts a program in a container; the image follows."""

    container_setup: list[str] = field(default_factory=list)
    """Lines of shell that a job with a container needs first."""

    container_images: str | None = None
    """Where the site keeps images for training."""


@dataclass
class Area:
    """One file system, or one folder with rules of its own."""

    path: str = ""
    """Its path; `$NAME` is a variable of the site."""

    quota_gb: float | None = None
    """Space, in GB."""

    quota_files: int | None = None
    """Number of files."""

    purge_days: int | None = None
    """Days after which files are deleted; `null` = never, or not known."""

    note: str | None = None
    """Remark for users."""


@dataclass
class Storage:
    """File systems."""

    type: str | None = None
    """Kind of the parallel file system."""

    node_local: str = "/tmp"
    """Node-local folder for caches and an unpacked environment; lost with the job."""

    cache_variables: list[str] = field(default_factory=list)
    """Variables of other caches that must not be on the parallel file system."""

    areas: dict[str, Area] = field(default_factory=dict)
    """Areas by name."""


@dataclass
class Billing:
    """What a job costs."""

    unit: str | None = None
    """Currency of the account."""

    per_device_hour: float | None = None
    """Units for one device in one hour, with its share of cores and memory."""

    note: str | None = None
    """Remark for users."""


@dataclass
class Energy:
    """Where the energy of a job can be read."""

    source: str | None = None
    """Program or file."""

    sbatch: list[str] = field(default_factory=list)
    """Flags of sbatch that turn the measurement on; they are comments in the script."""


@dataclass
class Profile:
    """One cluster, or one partition of it with its own hardware."""

    title: str = ""
    """Display name of the cluster."""

    kind: Kind = Kind.site
    """What this profile describes."""

    centre: str | None = None
    """Operator of the cluster."""

    country: str | None = None
    """Country, two letters."""

    docs: str | None = None
    """Address of the centre's documentation."""

    note: str | None = None
    """The most important remark for users."""

    account: str | None = None
    """Account that jobs are billed to: yours, so set it in your own file; `null` = that of the login."""

    account_required: bool = False
    """Whether a job without an account is refused."""

    account_example: str | None = None
    """Example of an account."""

    partition: str | None = None
    """Partition of the jobs; `null` = the cluster's default."""

    qos: str | None = None
    """QoS of the jobs; `null` = the default of the account."""

    qos_required: bool = False
    """Whether a job without a QoS is refused."""

    qos_example: str | None = None
    """Example of a QoS."""

    partitions: dict[str, Limits] = field(default_factory=dict)
    """Partitions and their limits; empty = not known, so any name is taken."""

    qos_limits: dict[str, Limits] = field(default_factory=dict)
    """QoS and their limits, which go before those of the partition; empty = not known, so any name is taken."""

    device: Device = field(default_factory=Device)
    node: Node = field(default_factory=Node)
    request: Request = field(default_factory=Request)
    fabric: Fabric = field(default_factory=Fabric)
    internet: Internet = field(default_factory=Internet)
    software: Software = field(default_factory=Software)
    storage: Storage = field(default_factory=Storage)
    billing: Billing = field(default_factory=Billing)
    energy: Energy = field(default_factory=Energy)

    @property
    def where(self) -> str:
        """Title, centre and country."""
        place = ", ".join(part for part in (self.centre, self.country) if part)
        return f"{self.title} ({place})" if place else self.title

    @property
    def device_word(self) -> str:
        """Name of one device."""
        if self.device.runtime is Runtime.cpu:
            return "CPU rank"
        return "GCD" if "GCD" in (self.device.model or "") else "GPU"

    def limits(self, partition: str | None, qos: str | None) -> Limits:
        """Return the limits of a job; a limit of the QoS goes before that of the partition.

        Args:
            partition: Partition of the job.
            qos: QoS of the job.
        """
        of_partition = self.partitions.get(partition or "", Limits())
        of_qos = self.qos_limits.get(qos or "", Limits())
        both = Limits(
            **{
                name: getattr(of_partition, name) if getattr(of_qos, name) is None else getattr(of_qos, name)
                for name in ("max_hours", "max_nodes", "min_nodes", "max_devices", "whole_nodes")
            }
        )
        if both.whole_nodes is None:
            both.whole_nodes = self.request.whole_nodes
        return both

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this profile, one sentence each."""
        if not self.title.strip():
            yield "title is missing: write title: NAME, the cluster's name for people"
        for key, value in (
            ("device.per_node", self.device.per_node),
            ("node.cores_per_device", self.node.cores_per_device),
        ):
            if value < 1:
                yield f"{key}={value} must be at least 1"
        needed = self.device.per_node * self.node.cores_per_device
        if self.node.cores is not None and needed > self.node.cores:
            yield (
                f"node.cores_per_device={self.node.cores_per_device} x device.per_node={self.device.per_node} is more "
                f"than node.cores={self.node.cores}: write node.cores_per_device="
                f"{max(1, self.node.cores // max(1, self.device.per_node))} or less"
            )
        if self.partitions and self.partition not in (None, *self.partitions):
            yield f"partition={self.partition} is not in partitions: choose from {', '.join(self.partitions)}"
        if self.qos_limits and self.qos not in (None, *self.qos_limits):
            yield f"qos={self.qos} is not in qos_limits: choose from {', '.join(self.qos_limits)}"
        masks = (self.request.cpu_bind_full_node or "").partition("mask_cpu:")[2]
        if masks and len(masks.split(",")) != self.device.per_node:
            yield (
                f"request.cpu_bind_full_node has {len(masks.split(','))} masks, but device.per_node="
                f"{self.device.per_node}: write one mask per device"
            )
        starts_with_a_command = self.software.container in (Container.apptainer, Container.singularity)
        if starts_with_a_command and not self.software.container_command:
            word = self.software.container.name
            yield f"software.container_command is missing: write for instance '{word} exec --nv'"
        for name, area in self.storage.areas.items():
            if not area.path:
                yield f"storage.areas.{name}.path is missing: write the folder where it begins"
