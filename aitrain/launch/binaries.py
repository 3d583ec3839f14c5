"""What programs, containers and environments were built for, read from their files without running them."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

ELF_MACHINES = {62: "x86_64", 183: "aarch64", 21: "ppc64le", 243: "riscv64"}
"""`e_machine` of an ELF header -> architecture. Source: elf(5) and the ELF specification."""

SIF_ARCHITECTURES = {b"01": "i386", b"02": "x86_64", b"03": "arm", b"04": "aarch64", b"05": "ppc64", b"06": "ppc64le"}
"""Architecture in the header of a SIF image. Source: https://github.com/apptainer/sif, `pkg/sif/arch.go`."""

_SIF_MAGIC = b"SIF_MAGIC\0"
_SIF_MAGIC_AT, _SIF_ARCH_AT = 32, 45


class TorchBuild(Enum):
    """What an installed torch computes on."""

    cuda = "NVIDIA GPUs"
    rocm = "AMD GPUs"
    cpu = "CPUs only"


def program_architecture(path: Path) -> str | None:
    """Return what an ELF program was built for; `None` = not an ELF program, or an unknown architecture.

    Args:
        path: The program; links are followed.
    """
    head = _head(path, 20)
    if not head.startswith(b"\x7fELF") or len(head) < 20:
        return None
    order = "little" if head[5] == 1 else "big"
    return ELF_MACHINES.get(int.from_bytes(head[18:20], order))  # type: ignore[arg-type]


def container_architecture(path: Path) -> str | None:
    """Return what a container was built for: a SIF image, or an unpacked folder; `None` = unknown.

    Args:
        path: The image or folder.
    """
    if path.is_dir():
        programs = [path / name for name in ("bin/sh", "usr/bin/env", "bin/busybox")]
        # an absolute link leads out of the folder, to a program of this machine
        inside = [program for program in programs if not (program.is_symlink() and program.readlink().is_absolute())]
        return next(filter(None, map(program_architecture, inside)), None)
    head = _head(path, 48)
    if head[_SIF_MAGIC_AT : _SIF_MAGIC_AT + len(_SIF_MAGIC)] != _SIF_MAGIC:
        return None
    return SIF_ARCHITECTURES.get(head[_SIF_ARCH_AT : _SIF_ARCH_AT + 2])


def torch_build(packages: Path) -> TorchBuild | None:
    """Return what the torch in a folder of packages was built for; `None` = there is none.

    Args:
        packages: A `site-packages` folder.
    """
    try:
        text = (packages / "torch" / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    values = dict(re.findall(r"^(cuda|hip)\b[^=\n]*=\s*(.+?)\s*$", text, re.MULTILINE))
    if values.get("hip", "None") != "None":
        return TorchBuild.rocm
    return TorchBuild.cuda if values.get("cuda", "None") != "None" else TorchBuild.cpu


def packages_of(venv: Path) -> Path | None:
    """Return the `site-packages` of a virtual environment, or `None`.

    Args:
        venv: Its folder.
    """
    return next(iter(sorted(venv.glob("lib/python3.*/site-packages"))), None)


def _head(path: Path, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError:
        return b""
