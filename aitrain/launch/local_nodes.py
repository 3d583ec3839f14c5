"""Nodes of a Slurm on one machine: processes, and namespaces that make each a host of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import aitrain
from aitrain.errors import LaunchError
from aitrain.launch.job import smallest_set
from aitrain.launch.render import TEMPLATES

if TYPE_CHECKING:
    from aitrain.launch.local_site import Site

NODE_SCRIPT = TEMPLATES / "local_slurm/node.sh"
NAMESPACES = ["unshare", "--uts", "--ipc", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]


class Process(NamedTuple):
    """A process that we started; the start time distinguishes it from a later one with the same number."""

    pid: int
    """Its number."""

    started: int
    """When it began, in clock ticks since the machine booted."""


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def is_alive(process: Process | None) -> bool:
    """Return whether a process that we started still runs.

    Args:
        process: The process; `None` = it was never started.
    """
    found = _stat(process.pid) if process is not None else []
    return process is not None and bool(found) and found[0] != "Z" and int(found[19]) == process.started


def memory_mb(process: Process) -> float:
    """Return how much memory a process has in use, in MB.

    Args:
        process: A process that runs.
    """
    return int(_stat(process.pid)[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def start_process(command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> Process:
    """Start a daemon in its own session.

    Args:
        command: Program and arguments.
        log: File for its output.
        environment: Variables in addition to ours.
    """
    with open(log, "ab") as output:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    found = _stat(child.pid)
    return Process(child.pid, int(found[19]) if found else 0)


def stop_process(process: Process | None, seconds: float) -> None:
    """Terminate a process that we started; kill it if that takes too long.

    Args:
        process: The process; one that has ended, or `None`, is left alone.
        seconds: Time until it is killed; 0 = killed immediately.
    """
    if process is None or not is_alive(process):
        return
    if seconds:
        os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    if is_alive(process):
        os.kill(process.pid, signal.SIGKILL)
    while is_alive(process):
        time.sleep(0.02)
    with contextlib.suppress(ChildProcessError):  # it is our child only when we started it in this process
        os.waitpid(process.pid, 0)


def run(
    command: Sequence[str], check: bool = True, configuration: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a short command.

    Args:
        command: Program and arguments.
        check: Whether a failure is refused.
        configuration: slurm.conf of the cluster.

    Raises:
        LaunchError: It failed.
    """
    env = {**os.environ, "SLURM_CONF": str(configuration)} if configuration else None
    done = subprocess.run(list(command), capture_output=True, text=True, check=False, env=env)
    if check and done.returncode:
        raise LaunchError(f"`{' '.join(command)}` failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done


def why_no_namespaces() -> str | None:
    """Return why nodes cannot have their own network here, or `None` if they can."""
    if os.geteuid() != 0:
        return "only root can give each its own network"
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found"
    name = f"aitrain-probe-{os.getpid()}"
    done = run(["ip", "netns", "add", name], check=False)
    if done.returncode == 0:
        done = run(["ip", "link", "add", "aitrain-probe", "type", "bridge"], check=False)
        run(["ip", "link", "del", "aitrain-probe"], check=False)
        run(["ip", "netns", "del", name], check=False)
    return None if done.returncode == 0 else f"this machine gives them no network: {done.stderr.strip()}"


def shared_folders(more: Sequence[Path]) -> tuple[str, ...]:
    """Return the folders below /tmp that every node must see: those given, this Python and aitrain itself.

    Args:
        more: Folders of the cluster and of its user.
    """
    package = Path(aitrain.__file__).resolve().parents[1]
    cache = Path(os.environ.get("AITRAIN_CACHE") or "/")
    wanted = [*more, Path(sys.prefix), Path(sys.base_prefix), package, cache]
    below = [str(path.absolute()) for path in wanted if path.absolute().is_relative_to("/tmp")]
    return smallest_set([path for path in below if path != "/tmp" and Path(path).is_dir()])


def make_bridge(site: Site) -> None:
    """Create the network device that connects the nodes.

    Args:
        site: The cluster.
    """
    run(["ip", "link", "add", site.bridge, "type", "bridge"])
    run(["ip", "addr", "replace", f"{site.network}.254/24", "dev", site.bridge])
    run(["ip", "link", "set", site.bridge, "up"])


def _namespace(site: Site, name: str) -> str:
    return f"{site.bridge}-{name}"


def start_node(site: Site, name: str) -> Process:
    """Start one node; Slurm may use it a moment later.

    Args:
        site: The cluster.
        name: Name of the node.
    """
    log = site.folder / f"log/{name}.out"
    if not site.namespaces:
        (site.folder / "spool" / name).mkdir(exist_ok=True)
        return start_process(["slurmd", "-D", "-N", name, "-f", str(site.configuration)], log)
    namespace, number = _namespace(site, name), name.removeprefix("node")
    outside = f"{site.bridge}n{number}"
    if not Path(f"/run/netns/{namespace}").exists():
        run(["ip", "netns", "add", namespace])
        run(["ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", namespace])
        run(["ip", "link", "set", outside, "master", site.bridge, "up"])
        run(["ip", "-n", namespace, "link", "set", "lo", "up"])
        run(["ip", "-n", namespace, "addr", "replace", f"{site.network}.{number}/24", "dev", "eth0"])
        run(["ip", "-n", namespace, "link", "set", "eth0", "up"])
    # not `ip netns exec`: it mounts /sys anew, and slurmd no longer finds the cgroups
    inside = ["nsenter", f"--net=/run/netns/{namespace}", *NAMESPACES, "--mount-proc", "bash", str(NODE_SCRIPT)]
    return start_process(inside, log, {"NODE": name, "SITE": str(site.folder), "SHARED": ":".join(site.shared)})


def stop_node(site: Site, name: str, process: Process | None) -> None:
    """Kill one node with everything on it, and remove its network.

    Args:
        site: The cluster.
        name: Name of the node.
        process: Its process.
    """
    if not site.namespaces:
        stop_process(process, 3.0)
        return
    stop_process(process, 0.0)  # its namespace goes with it
    namespace = _namespace(site, name)
    if Path(f"/run/netns/{namespace}").exists():
        run(["ip", "netns", "del", namespace], check=False)


def remove_network(site: Site) -> None:
    """Remove the network devices of a cluster.

    Args:
        site: The cluster.
    """
    for device in _devices(site):
        run(["ip", "link", "del", device], check=False)


def _devices(site: Site) -> Iterator[str]:
    for path in Path("/sys/class/net").glob(f"{site.bridge}*"):
        if path.name == site.bridge or path.name.startswith(f"{site.bridge}n"):
            yield path.name
