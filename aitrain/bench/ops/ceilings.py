"""The two upper bounds of this device, measured first: copying memory, and a large matrix product."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median

import torch

from aitrain import __version__
from aitrain.bench.ops.case import Work

RIVALS = ("liger-kernel", "cut-cross-entropy", "quack-kernels", "torchao", "bitsandbytes", "peft", "transformers")


@dataclass(frozen=True)
class Ceilings:
    """Best rates of this device."""

    copy_bytes_per_s: float
    """Bytes read plus bytes written."""

    flops_per_s: float
    """Of a matrix product, bf16 on a GPU and fp32 on a CPU."""

    def least_s(self, work: Work) -> float:
        """Return the time below which the work cannot be done.

        Args:
            work: Bytes and operations.
        """
        return max(work.bytes / self.copy_bytes_per_s, work.flops / self.flops_per_s)


def measure(device: torch.device) -> Ceilings:
    """Measure both; takes a few seconds.

    Args:
        device: Where.
    """
    gpu = device.type == "cuda"
    size, side, dtype = (8 << 30, 8192, torch.bfloat16) if gpu else (256 << 20, 1024, torch.float32)
    if gpu:
        size = min(size, torch.cuda.mem_get_info()[0] // 4)
    source, target = (torch.empty(size // 4, dtype=torch.int32, device=device).zero_() for _ in range(2))
    copy = _median_s(partial(target.copy_, source), device)
    del source, target
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = _median_s(partial(torch.matmul, a, b), device)
    return Ceilings(2 * size / copy, 2 * side**3 / product)


def _median_s(run: Callable[[], object], device: torch.device) -> float:
    spent = []
    for _ in range(12):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            spent.append(begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            run()
            spent.append(time.perf_counter() - start)
    return median(spent[2:])


def surroundings(device: torch.device, ceilings: Ceilings) -> dict[str, str]:
    """Return what a reader must know to judge the numbers: device, driver, versions, ceilings.

    Args:
        device: Where it was measured.
        ceilings: From `measure`.
    """
    gpu = device.type == "cuda"
    kind = "bf16 8192^3" if gpu else "fp32 1024^3"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if gpu else f"{processor()}, {torch.get_num_threads()} of its threads",
        "driver": _driver() if gpu else "none: CPU figures, fp32, shapes so small that caches beat the copy rate",
        "aitrain": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **_versions(("triton", *RIVALS)),
        "copy of memory": f"{ceilings.copy_bytes_per_s / 1e9:,.0f} GB/s, read and written",
        "matrix product": f"{ceilings.flops_per_s / 1e12:,.2f} TFLOP/s, {kind}",
    }


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _driver() -> str:
    if torch.version.hip is not None:
        return f"HIP {torch.version.hip}"
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        said = f"unknown ({type(error).__name__})"
    return f"{said}, CUDA {torch.version.cuda}"


def processor() -> str:
    """Return the model name of the CPU and the number of its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
