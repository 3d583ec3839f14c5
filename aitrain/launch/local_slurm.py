"""A real Slurm of several nodes on this machine, to try jobs on: `aitrain local-slurm start|stop|status`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from aitrain.errors import LaunchError
from aitrain.io import write_text
from aitrain.io.home import user_path
from aitrain.launch import local_nodes
from aitrain.launch.local_nodes import Process, is_alive, run, start_process, stop_process
from aitrain.launch.local_site import FIRST_PORT, PORTS_PER_SITE, Site, write_configuration

PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "sbatch", "scontrol")
PACKAGES = "apt-get install --no-install-recommends munge slurmctld slurmd slurm-client iproute2"
MOST_NODES = 16
MOST_GPUS = 16
LONGEST_FOLDER = 80  # the path of a socket may have 107 characters
READY_S = 30.0
TURN = "\0aitrain-local-slurm-start"
"""Abstract socket that a starting cluster holds: visible on the whole machine, released when its process ends."""
TURN_S = 90.0


def default_folder() -> Path:
    """Return where the cluster is kept: `AITRAIN_LOCAL_SLURM`, else `~/.cache/aitrain/local-slurm`."""
    return user_path(os.environ.get("AITRAIN_LOCAL_SLURM") or "~/.cache/aitrain/local-slurm").absolute()


def running_site(folder: Path | None = None) -> Site | None:
    """Return the cluster that runs in a folder, or `None`.

    Args:
        folder: Its folder; the default one when absent.
    """
    folder = folder or default_folder()
    site, processes = _read(folder)
    return site if site is not None and is_alive(processes.get("slurmctld")) else None


def start(nodes: int, gpus: int, folder: Path, one_host: bool) -> tuple[Site, list[str]]:
    """Start munged, slurmctld and one slurmd per node, and wait until every node is idle.

    Args:
        nodes: Nodes.
        gpus: Pretended GPUs per node.
        folder: Where configuration, logs and state go.
        one_host: Run all nodes on this host, even where namespaces are allowed.

    Returns:
        The cluster, and what a user should know about it.

    Raises:
        LaunchError: Programs are missing, one runs there already, or it did not start; nothing is left running then.
    """
    _refuse(nodes, gpus, folder)
    with _one_at_a_time():
        return _start(nodes, gpus, folder, one_host)


def _start(nodes: int, gpus: int, folder: Path, one_host: bool) -> tuple[Site, list[str]]:
    why_not = "as --one-host asks" if one_host else local_nodes.why_no_namespaces()
    shared = local_nodes.shared_folders([folder, Path.cwd()]) if why_not is None else ()
    site = Site(folder, _free_number(why_not is None), nodes, gpus, why_not is None, shared)
    processes: dict[str, Process] = {}
    try:
        write_configuration(site)
        _start_daemons(site, processes)
        for name in site.names:
            processes[name] = local_nodes.start_node(site, name)
            _keep(site, processes)
        _wait_until_idle(site, site.nodes)
    except BaseException:
        _stop(site, processes)
        raise
    kind = "each with its own network, processes and /tmp" if why_not is None else f"all on this host ({why_not})"
    told = [f"{nodes} nodes x {gpus} simulated GPUs are up, {kind}."]
    if shared:
        told.append(f"Below /tmp, the nodes share only these folders: {', '.join(shared)}")
    return site, told


def _refuse(nodes: int, gpus: int, folder: Path) -> None:
    for name, value, most in (("nodes", nodes, MOST_NODES), ("gpus", gpus, MOST_GPUS)):
        if not (name == "gpus" and value == 0) and not 1 <= value <= most:
            raise LaunchError(f"--{name}={value} is not possible: write a number from 1 to {most}")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise LaunchError(f"{', '.join(missing)} not found. Install Slurm first, on Debian or Ubuntu: {PACKAGES}")
    if len(str(folder)) > LONGEST_FOLDER:
        raise LaunchError(f"--dir={folder} is too long for a socket: use a path of at most {LONGEST_FOLDER} characters")
    site, processes = _read(folder)
    if site is not None and any(is_alive(process) for process in processes.values()):
        raise LaunchError(f"A cluster runs in {folder} already: `aitrain local-slurm status` shows it")


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Start one cluster at a time: until its daemons listen, its network and ports still look free to another."""
    with socket.socket(socket.AF_UNIX) as turn:

        def is_ours() -> bool:
            try:
                turn.bind(TURN)
            except OSError:
                return False
            return True

        _wait_for(
            is_ours, f"Another cluster has been starting on this machine for {TURN_S:.0f} s: try again later", TURN_S
        )
        yield


def _free_number(namespaces: bool) -> int:
    """Return the number of an unused network and port range."""
    for number in range(100):
        if namespaces and Path(f"/sys/class/net/aitrain{number}").exists():
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("", FIRST_PORT + PORTS_PER_SITE * number))
            except OSError:
                continue
        return number
    raise LaunchError(f"No free port found from {FIRST_PORT} on: stop other local clusters first")


def _start_daemons(site: Site, processes: dict[str, Process]) -> None:
    key = site.folder / "munge/munge.key"
    if not key.exists():
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
    munged = ["munged", "--foreground", "--force", "--num-threads=4", f"--key-file={key}", f"--socket={site.socket}"]
    munged += [f"--pid-file={site.folder}/munge/munged.pid", f"--log-file={site.folder}/log/munged.log"]
    munged += [f"--seed-file={site.folder}/munge/munged.seed"]
    processes["munged"] = start_process(munged, site.folder / "log/munged.out")
    _keep(site, processes)
    _wait_for(
        lambda: run(["munge", "-n", f"--socket={site.socket}"], check=False).returncode == 0,
        f"munged did not start: see {site.folder}/log/munged.log",
        10.0,
    )
    if site.namespaces:
        local_nodes.make_bridge(site)
    controller = ["slurmctld", "-D", "-f", str(site.configuration)]
    processes["slurmctld"] = start_process(controller, site.folder / "log/slurmctld.out")
    _keep(site, processes)


def _wait_until_idle(site: Site, count: int) -> None:
    def idle() -> bool:
        command = ["sinfo", "-h", "-N", "-p", "debug", "-t", "idle", "-o", "%N"]
        return len(run(command, check=False, configuration=site.configuration).stdout.split()) == count

    _wait_for(idle, f"The nodes did not start: see {site.folder}/log", READY_S)


def _wait_for(is_so: Callable[[], bool], otherwise: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise LaunchError(otherwise)
        time.sleep(0.1)


def stop(folder: Path) -> None:
    """Stop the cluster in a folder: its jobs, and exactly the processes and network devices that `start` created.

    Args:
        folder: Its folder.

    Raises:
        LaunchError: There is none.
    """
    site, processes = _read(folder)
    if site is None:
        raise LaunchError(f"No cluster was started in {folder}: `aitrain local-slurm start` starts one")
    _stop(site, processes)


def _stop(site: Site, processes: dict[str, Process]) -> None:
    stop_process(processes.get("slurmctld"), 4.0)  # before the nodes, else it waits for them
    for name in site.names:
        local_nodes.stop_node(site, name, processes.get(name))
    stop_process(processes.get("munged"), 4.0)
    if site.namespaces:
        local_nodes.remove_network(site)
    (site.folder / "state.json").unlink(missing_ok=True)


def status(folder: Path) -> str:
    """Return the nodes and daemons of a cluster as text.

    Args:
        folder: Its folder.

    Raises:
        LaunchError: None runs there.
    """
    site, processes = _running(folder)
    command = ["sinfo", "-N", "-p", "debug", "-o", "%N %T %G %E"]
    lines = [run(command, configuration=site.configuration).stdout.rstrip(), ""]
    for name, process in processes.items():
        state = f"{local_nodes.memory_mb(process):.0f} MB" if is_alive(process) else "not running"
        lines.append(f"{name:<10} pid {process.pid:<8} {state}")
    return "\n".join([*lines, "", f"export SLURM_CONF={site.configuration}"])


def kill_node(folder: Path, name: str) -> None:
    """Crash a node: every process on it is killed.

    Args:
        folder: Folder of the cluster.
        name: Name of the node.

    Raises:
        LaunchError: There is no such node, or it is down already.
    """
    site, processes = _of_node(folder, name)
    if not is_alive(processes.get(name)):
        raise LaunchError(f"{name} is down already: `aitrain local-slurm start-node {name}` brings it back")
    stop_process(processes.pop(name), 0.0)
    _keep(site, processes)


def start_node(folder: Path, name: str) -> None:
    """Restart a crashed node, and wait until Slurm can use it again.

    Args:
        folder: Folder of the cluster.
        name: Name of the node.

    Raises:
        LaunchError: There is no such node, or it is up.
    """
    site, processes = _of_node(folder, name)
    if is_alive(processes.get(name)):
        raise LaunchError(f"{name} is up already")
    processes[name] = local_nodes.start_node(site, name)
    _keep(site, processes)
    command = ["sinfo", "-h", "-N", "-p", "debug", "-n", name, "-o", "%T"]

    def is_back() -> bool:
        said = run(command, check=False, configuration=site.configuration).stdout.strip()
        return said in ("idle", "mixed", "allocated", "completing")

    _wait_for(is_back, f"{name} did not come back: see {site.folder}/log/slurmd-{name}.log", READY_S)


def _of_node(folder: Path, name: str) -> tuple[Site, dict[str, Process]]:
    site, processes = _running(folder)
    if name not in site.names:
        raise LaunchError(f"{name} is not a node of this cluster: choose from {', '.join(site.names)}")
    return site, processes


def _running(folder: Path) -> tuple[Site, dict[str, Process]]:
    site, processes = _read(folder)
    if site is None or not is_alive(processes.get("slurmctld")):
        raise LaunchError(f"No cluster runs in {folder}: `aitrain local-slurm start` starts one")
    return site, processes


def _keep(site: Site, processes: dict[str, Process]) -> None:
    content = {
        **asdict(site),
        "folder": str(site.folder),
        "processes": {name: list(process) for name, process in processes.items()},
    }
    write_text(site.folder / "state.json", json.dumps(content, indent=1) + "\n")


def _read(folder: Path) -> tuple[Site | None, dict[str, Process]]:
    try:
        content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, {}
    processes = {name: Process(*numbers) for name, numbers in content.pop("processes").items()}
    return Site(**{**content, "folder": Path(content["folder"]), "shared": tuple(content["shared"])}), processes


def act(action: str, node: str | None, nodes: int, gpus: int, folder: Path | None, one_host: bool) -> str:
    """Run one action of `aitrain local-slurm`.

    Args:
        action: `start`, `stop`, `status`, `kill-node` or `start-node`.
        node: Name of a node, for the last two.
        nodes: With `start`: nodes.
        gpus: With `start`: simulated GPUs per node.
        folder: Folder of the cluster; the default one when absent.
        one_host: With `start`: all nodes on this host.

    Returns:
        What to tell the user.

    Raises:
        LaunchError: It cannot be done.
    """
    folder = (folder or default_folder()).absolute()
    if (node is not None) != action.endswith("-node"):
        raise LaunchError("kill-node and start-node take the name of a node, the other actions do not")
    if action == "start":
        site, told = start(nodes, gpus, folder, one_host)
        return "\n".join([*told, f"For Slurm's own commands in this shell: export SLURM_CONF={site.configuration}"])
    if action == "stop":
        stop(folder)
        return f"Stopped. Its logs are still in {folder}/log"
    if action == "status":
        return status(folder)
    if action == "kill-node":
        kill_node(folder, str(node))
        return f"{node} has crashed; Slurm notices within half a minute. `aitrain local-slurm start-node {node}`"
    start_node(folder, str(node))
    return f"{node} is back."
