"""A Slurm on this machine as values, and its configuration files."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from aitrain.errors import LaunchError
from aitrain.io import write_text
from aitrain.launch.render import environment

FIRST_PORT = 16817
PORTS_PER_SITE = 20
NODE_LINE = "CPUs=512 RealMemory=4000000 Feature=thp_never,nvidia_vboost_enabled"


@dataclass(frozen=True)
class Site:
    """One cluster on this machine, as `state.json` in its folder keeps it."""

    folder: Path
    """Where its configuration, logs and state are."""

    number: int
    """Number of its network and ports."""

    nodes: int
    """Nodes."""

    gpus: int
    """Pretended GPUs per node."""

    namespaces: bool
    """Whether each node has its own network, processes and mounts; otherwise all run on this host."""

    shared: tuple[str, ...]
    """Folders below `/tmp` that every node sees; everything else in `/tmp` is private to a node."""

    @property
    def configuration(self) -> Path:
        """The file for `SLURM_CONF`."""
        return self.folder / "etc/slurm.conf"

    @property
    def socket(self) -> Path:
        """Socket of munged."""
        return self.folder / "munge/munge.sock"

    @property
    def network(self) -> str:
        """First three numbers of the nodes' addresses."""
        return f"10.77.{self.number}"

    @property
    def bridge(self) -> str:
        """Name of the network device that connects the nodes."""
        return f"aitrain{self.number}"

    @property
    def port(self) -> int:
        """Port of slurmctld; those of the nodes follow."""
        return FIRST_PORT + PORTS_PER_SITE * self.number

    @property
    def controller(self) -> str:
        """Host of slurmctld, as slurm.conf writes it."""
        return f"{socket.gethostname()}({self.network}.254)" if self.namespaces else "localhost(127.0.0.1)"

    @property
    def names(self) -> list[str]:
        """Names of the nodes."""
        return [f"node{number}" for number in range(1, self.nodes + 1)]


def write_configuration(site: Site) -> None:
    """Write slurm.conf and its companion files.

    Args:
        site: The cluster; jobs and logs of one that ran in its folder before are removed.

    Raises:
        LaunchError: There are no device files that could stand for GPUs.
    """
    for name in ("etc", "state", "spool", "log", "munge", "dev"):
        (site.folder / name).mkdir(parents=True, exist_ok=True)
    for old in ("state", "spool"):  # jobs of a cluster that ran here before are over
        shutil.rmtree(site.folder / old)
        (site.folder / old).mkdir()
    node = NODE_LINE
    if site.gpus:
        node += f" Gres=gpu:{site.gpus}"
        files = _devices(site)
        write_text(
            site.folder / "etc/gres.conf", f"NodeName=node[1-{site.nodes}] Name=gpu AutoDetect=off File={files}\n"
        )
    text = environment().get_template("local_slurm/slurm.conf.jinja")
    write_text(site.configuration, text.render(site=site, user=getpass.getuser(), node=f"{node} State=UNKNOWN"))
    # slurmd always loads a cgroup plugin; only that of v1 needs nothing from the machine
    write_text(site.folder / "etc/cgroup.conf", "CgroupPlugin=cgroup/v1\n")
    lines = ["127.0.0.1 localhost", f"{site.network}.254 {socket.gethostname()}"]
    for number, name in enumerate(site.names, 1):
        # torch looks up the IPv4 address as IPv6 writes it, and warns where it has no name
        lines += [f"{site.network}.{number} {name}", f"::ffff:{site.network}.{number} {name}"]
    write_text(site.folder / "etc/hosts", "\n".join(lines) + "\n")


def _devices(site: Site) -> str:
    """Return device files that simulate GPUs, in the notation of gres.conf.

    Slurm numbers GPUs by character devices. Copies of /dev/null work; without permission to create them, consoles.

    Args:
        site: The cluster.

    Raises:
        LaunchError: There are neither.
    """
    folder = site.folder / "dev"
    try:
        for number in range(site.gpus):
            path = folder / f"nvidia{number}"
            if not path.exists():
                os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        return f"{folder}/nvidia[0-{site.gpus - 1}]"
    except OSError:
        if all(Path(f"/dev/tty{number}").is_char_device() for number in range(site.gpus)):
            return f"/dev/tty[0-{site.gpus - 1}]"
    raise LaunchError("This user may not create the device files that simulate GPUs: write --gpus 0")
