"""Measures one rank of an allocation: its device, its network and its file system, at the same time as all others."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from aitrain.dist import heartbeat
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.dist.supervisor import node_name

PRODUCT_S = 2.0
"""Seconds for which every device multiplies matrices."""

REDUCTIONS = 5


@dataclass(frozen=True)
class Measured:
    """What one rank found."""

    rank: int
    """Its number."""

    node: str
    """Its node."""

    device: str
    """What it computes on."""

    memory_gb: float | None
    """Memory of the device, in GB; `None` on CPUs."""

    memory_errors: int | None
    """Uncorrectable memory errors since the driver was loaded; `None` = not counted there."""

    tflops: float
    """Rate of matrix products, in TFLOP/s."""

    time_s: float
    """Its clock at a moment that is the same for all ranks, in seconds since 1970."""

    write_gbps: float | None
    """Rate at which its node writes to the file system, in GB/s; `None` = another rank of the node has measured it."""

    within_gbps: float | None
    """Bandwidth of an all-reduce within its node, in Gbit/s; `None` = one rank per node."""

    between_gbps: float | None
    """Bandwidth of an all-reduce between the nodes, in Gbit/s; `None` = one node, or not the first rank of its node."""

    network: str
    """What messages between nodes went through."""


def measure(ranks: Ranks, folder: Path) -> list[Measured]:
    """Measure this rank together with all others; every rank calls this.

    Args:
        ranks: This process's place.
        folder: Folder of the file system that is measured.

    Returns:
        What every rank found, on rank 0; nothing elsewhere.
    """
    visible = torch.cuda.device_count()
    accelerator = "cuda" if visible == 1 or visible >= ranks.local_world else "cpu"
    log = Path(tempfile.gettempdir()) / f"aitrain-nccl-{os.getpid()}.log"
    if accelerator == "cuda":  # NCCL says in its log which network it uses
        os.environ |= {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,NET", "NCCL_DEBUG_FILE": str(log)}
    heartbeat.beat("connecting to the other ranks")
    group = Group(ranks, accelerator)
    device = torch.device("cuda", torch.cuda.current_device()) if accelerator == "cuda" else torch.device("cpu")
    try:
        group.barrier()
        clock = time.time()
        heartbeat.beat("matrix products")
        tflops = product_rate(device)
        heartbeat.beat("all-reduce")
        within, between = _bandwidths(ranks, device)
        heartbeat.beat("writing a file")
        written = write_rate(folder, 1 << (30 if accelerator == "cuda" else 26)) if ranks.local_rank == 0 else None
        properties = torch.cuda.get_device_properties(device) if accelerator == "cuda" else None
        own = Measured(
            rank=ranks.rank,
            node=node_name(os.environ),
            device=properties.name if properties else f"{len(os.sched_getaffinity(0))} CPU cores",
            memory_gb=properties.total_memory / 1e9 if properties else None,
            memory_errors=memory_errors(str(properties.uuid)) if properties else None,
            tflops=tflops,
            time_s=clock,
            write_gbps=written,
            within_gbps=within,
            between_gbps=between,
            network=_network(log) if accelerator == "cuda" else f"gloo over TCP ({_address()})",
        )
        return [Measured(**found) for found in group.to_first(vars(own))]
    finally:
        group.close()
        log.unlink(missing_ok=True)


def memory_errors(uuid: str) -> int | None:
    """Return the uncorrectable memory errors of an NVIDIA GPU; `None` if nvidia-smi does not report them.

    Args:
        uuid: The device, with or without `GPU-` before it.

    Source: `nvidia-smi --help-query-gpu`.
    """
    words = ["--query-gpu=uuid,ecc.errors.uncorrected.volatile.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    for line in done.stdout.splitlines():
        name, _, count = (word.strip() for word in line.partition(","))
        if name.removeprefix("GPU-") == uuid.removeprefix("GPU-") and count.isdigit():
            return int(count)
    return None


def product_rate(device: torch.device, seconds: float = PRODUCT_S) -> float:
    """Return the rate of matrix products, in TFLOP/s: bf16 on GPUs, fp32 with one thread on CPUs.

    Args:
        device: The device.
        seconds: How long it is kept busy.
    """
    on_gpu = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if on_gpu else (384, torch.float32)
    threads = torch.get_num_threads()
    if not on_gpu:
        torch.set_num_threads(1)
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    done = 0
    for _ in range(3):
        left @ right
    _finish(device)
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        for _ in range(10):
            left @ right
        _finish(device)
        done += 10
    rate = 2 * size**3 * done / (time.monotonic() - began) / 1e12
    torch.set_num_threads(threads)
    return rate


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _bandwidths(ranks: Ranks, device: torch.device) -> tuple[float | None, float | None]:
    """Return the bandwidth of an all-reduce within this node and between the first ranks of all nodes, in Gbit/s.

    It is that of the bus: 2 (n - 1) / n of the bytes cross each rank's link.

    Source: https://github.com/NVIDIA/nccl-tests, `doc/PERFORMANCE.md`.
    """
    if ranks.world == 1:
        return None, None
    nodes, size = ranks.nodes, ranks.local_world
    own: Any = None
    for node in range(nodes):  # every rank makes every group
        members = dist.new_group(list(range(node * size, (node + 1) * size)))
        own = members if node == ranks.node else own
    firsts = dist.new_group([node * size for node in range(nodes)])
    within = _bandwidth(own, size, device) if size > 1 else None
    dist.barrier()
    between = _bandwidth(firsts, nodes, device) if nodes > 1 and ranks.local_rank == 0 else None
    dist.barrier()
    return within, between


def _bandwidth(group: Any, members: int, device: torch.device) -> float:
    count = 1 << (27 if device.type == "cuda" else 21)
    content = torch.ones(count, dtype=torch.float32, device=device)

    def reduce() -> None:
        dist.all_reduce(content, op=dist.ReduceOp.MAX, group=group)
        _finish(device)

    reduce()
    return 8e-9 * 4 * count * 2 * (members - 1) / members / _fastest(reduce)


def _fastest(action: Callable[[], None]) -> float:
    """Return the shortest time of some tries, in seconds."""
    times = []
    for _ in range(REDUCTIONS):
        began = time.monotonic()
        action()
        times.append(time.monotonic() - began)
    return min(times)


def write_rate(folder: Path, size: int) -> float:
    """Return the rate at which a new file is written and made durable, in GB/s.

    Args:
        folder: Where.
        size: Bytes.
    """
    block = os.urandom(1 << 24)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".aitrain-doctor-", buffering=0) as file:
        began = time.monotonic()
        for _ in range(size >> 24):
            file.write(block)
        os.fsync(file.fileno())
        return size / (time.monotonic() - began) / 1e9


def _network(log: Path) -> str:
    """Return what NCCL says it uses between nodes."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    found = re.search(r"Using network (\S+)", text)
    return f"NCCL over {found.group(1)}" if found else "NCCL"


def _address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "address not known"
