"""Compiles CUDA C++ of ops on first use, once per source, torch and GPU; says so, and says why when it cannot."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

_log = logging.getLogger(__name__)
ARCHITECTURES = ("80", "90")
"""Compute capabilities to compile for where there is no GPU to ask."""

FLAGS = (
    *("-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC", "-DUSE_CUDA", "-Xptxas", "-v"),
    "-DTORCH_TARGET_VERSION=0x020a000000000000",  # the stable ABI of torch 2.10, the oldest that aitrain takes
)


class BuildError(Exception):
    """Why there is no library; the caller reports it and uses another implementation."""


def cache_folder() -> Path:
    """Return the folder of compiled libraries: `ops/` in `AITRAIN_CACHE`, or in `~/.cache/aitrain`."""
    return Path(os.path.expanduser(os.environ.get("AITRAIN_CACHE") or "~/.cache/aitrain")) / "ops"


def find_nvcc() -> Path | None:
    """Return NVIDIA's compiler, from `CUDA_HOME` or the search path, or None."""
    home = os.environ.get("CUDA_HOME")
    if home and (Path(home) / "bin" / "nvcc").is_file():
        return Path(home) / "bin" / "nvcc"
    found = shutil.which("nvcc")
    return Path(found) if found else None


def architectures() -> tuple[str, ...]:
    """Return the compute capabilities to compile for: those of the GPUs here, else `ARCHITECTURES`."""
    if not torch.cuda.is_available():
        return ARCHITECTURES
    count = torch.cuda.device_count()
    return tuple(sorted({"{}{}".format(*torch.cuda.get_device_capability(i)) for i in range(count)}))


def library(name: str, sources: Sequence[Path], archs: Sequence[str] | None = None) -> Path:
    """Return a compiled library, from the cache when it was compiled before.

    Args:
        name: Of the library.
        sources: The first is compiled, all of them (headers too) make the key of the cache.
        archs: Compute capabilities, `90` for example; None = `architectures()`.

    Returns:
        The file, beside a `.log` of what the compiler said.

    Raises:
        BuildError: There is no compiler, or it failed.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError("nvcc was not found (neither in CUDA_HOME nor on the search path)")
    wanted = tuple(archs) if archs is not None else architectures()
    key = hashlib.sha256(repr((torch.__version__, wanted, FLAGS, _version(nvcc))).encode())
    for source in sources:
        key.update(source.read_bytes())
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}-{key.hexdigest()[:16]}.so"
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other ranks of this node wait for the first
        if not target.is_file():
            _compile(nvcc, sources[0], wanted, target)
    return target


@cache
def _version(nvcc: Path) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout


def _compile(nvcc: Path, source: Path, archs: Sequence[str], target: Path) -> None:
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    home = Path(torch.__file__).parent
    # CPU builds of torch have no libtorch_cuda: what a source takes from it is declared weak there
    linked = [f"-l{name}" for name in ("torch_cpu", "torch_cuda") if (home / "lib" / f"lib{name}.so").is_file()]
    link = [f"-L{home / 'lib'}", "-Xlinker", "--no-as-needed", *linked]
    _log.info("ops: compiling %s for sm_%s, once (a minute or less) into %s", source.name, ", sm_".join(archs), target)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        command = [
            str(nvcc),
            *FLAGS,
            *code,
            f"-I{home / 'include'}",
            "--threads",
            "0",
            str(source),
            *link,
            "-o",
            str(made),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        if done.returncode != 0:
            reason = next((line for line in said.splitlines() if "error" in line), said.strip()[-200:])
            raise BuildError(f"{nvcc} failed on {source.name}: {reason}")
        target.with_suffix(".log").write_text(said, encoding="utf-8")
        os.replace(made, target)
    _log.info("ops: compiled %s in %.0f s", source.name, time.monotonic() - begin)
