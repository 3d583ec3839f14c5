"""The options of a cluster profile: member name = the word in the YAML, value = what it means."""

from __future__ import annotations

from enum import Enum


class Confidence(Enum):
    """How reliable a value is."""

    documented = "read in the centre's own documentation or code"
    transcribed = "the centre's documentation, as copied by others"
    practice = "used by a project that runs there"
    unverified = "sources disagree, or only one outside report"
    derived = "computed from other values of the profile"
    chosen = "aitrain's own choice"
    yours = "set in a file of your own"


class Kind(Enum):
    """What a profile describes."""

    site = "a cluster"
    template = "a kind of machine: partition, account and network are your site's"
    placeholder = "a machine that is not specified yet: every value is an assumption"


class Arch(Enum):
    """Instruction set of the nodes' CPUs."""

    x86_64 = "x86_64"
    aarch64 = "aarch64"


class Runtime(Enum):
    """Programming platform of the devices."""

    cuda = "NVIDIA"
    rocm = "AMD"
    cpu = "no device: ranks train on CPU cores"


class Address(Enum):
    """How the address of rank 0 is formed from the name of the first node."""

    hostname = "the name itself"
    ip = "the IPv4 address of the name"
    ip_of_i = "the IPv4 address of the name with an i behind it (InfiniBand at JSC)"


class Network(Enum):
    """Whether a connection to the internet can be opened."""

    open = "yes"
    closed = "no"
    unknown = "unknown: treated as closed"


class DeviceFlag(Enum):
    """How devices are requested."""

    gpus_per_node = "--gpus-per-node=N"
    gres = "--gres=gpu:N"
    none = "not at all"


class Tasks(Enum):
    """How the tasks of the allocation are counted; `srun` starts one rank per device in both."""

    per_device = "one per device"
    per_node = "one per node, because the site asks for it"


class Container(Enum):
    """Container runtime of a site."""

    apptainer = "apptainer"
    singularity = "singularity"
    edf = "srun --environment=FILE.toml (Container Engine of CSCS)"
    none = "none known"
