"""What files were built for: this Python, headers of other architectures, containers, and torch."""

import platform
import sys
from pathlib import Path

import pytest

from aitrain.launch.binaries import (
    TorchBuild,
    container_architecture,
    packages_of,
    program_architecture,
    torch_build,
)


def elf(machine: int, order: str = "little") -> bytes:
    """Return the first bytes of an ELF program."""
    data = 1 if order == "little" else 2
    return b"\x7fELF" + bytes([2, data, 1]) + bytes(9) + (2).to_bytes(2, order) + machine.to_bytes(2, order)  # type: ignore[arg-type]


def sif(arch: bytes) -> bytes:
    """Return the header of a SIF image."""
    return b"#!/usr/bin/env run-singularity\n\0" + b"SIF_MAGIC\0" + b"01\0" + arch + b"\0" + bytes(16)


def test_this_python_is_of_this_machine() -> None:
    assert program_architecture(Path(sys.executable)) == platform.machine()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (elf(62), "x86_64"),
        (elf(183), "aarch64"),
        (elf(21, "big"), "ppc64le"),
        (elf(4711), None),
        (b"\x7fELF", None),
        (b"#!/bin/sh\n", None),
        (b"", None),
    ],
)
def test_programs(tmp_path: Path, content: bytes, expected: str | None) -> None:
    (tmp_path / "program").write_bytes(content)
    assert program_architecture(tmp_path / "program") == expected


def test_a_program_that_is_not_there_tells_nothing(tmp_path: Path) -> None:
    assert program_architecture(tmp_path / "none") is None


@pytest.mark.parametrize(("arch", "expected"), [(b"02", "x86_64"), (b"04", "aarch64"), (b"99", None)])
def test_images(tmp_path: Path, arch: bytes, expected: str | None) -> None:
    (tmp_path / "image.sif").write_bytes(sif(arch))
    assert container_architecture(tmp_path / "image.sif") == expected


def test_unpacked_containers_and_other_files(tmp_path: Path) -> None:
    (tmp_path / "sandbox/usr/bin").mkdir(parents=True)
    assert container_architecture(tmp_path / "sandbox") is None
    (tmp_path / "sandbox/usr/bin/env").write_bytes(elf(183))
    assert container_architecture(tmp_path / "sandbox") == "aarch64"
    (tmp_path / "sandbox/bin").mkdir()
    (tmp_path / "sandbox/bin/sh").symlink_to(sys.executable)  # absolute: a program of this machine, not of the image
    assert container_architecture(tmp_path / "sandbox") == "aarch64"
    (tmp_path / "train.toml").write_text('image = "train"\n')
    assert container_architecture(tmp_path / "train.toml") is None


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", TorchBuild.cuda),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '7.0.1'\n", TorchBuild.rocm),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", TorchBuild.cpu),
        ("cuda = '12.8'\nhip = None\n", TorchBuild.cuda),
    ],
)
def test_torch(tmp_path: Path, version: str, expected: TorchBuild) -> None:
    packages = tmp_path / "lib/python3.12/site-packages"
    (packages / "torch").mkdir(parents=True)
    (packages / "torch/version.py").write_text(f"__version__ = '2.13.0'\ndebug = False\n{version}")
    assert packages_of(tmp_path) == packages and torch_build(packages) is expected


def test_the_torch_of_this_environment_is_read_as_torch_says_it() -> None:
    import torch

    built = TorchBuild.rocm if torch.version.hip else TorchBuild.cuda if torch.version.cuda else TorchBuild.cpu
    assert torch_build(Path(torch.__file__).parents[1]) is built


def test_no_torch_and_no_environment(tmp_path: Path) -> None:
    assert torch_build(tmp_path) is None and packages_of(tmp_path) is None
