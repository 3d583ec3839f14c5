"""Headers are read as safetensors itself reads them, and damage is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from aitrain.errors import ModelError
from aitrain.models.safetensors_header import Tensor, count_parameters, main_dtype, read_tensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16), "c": torch.tensor(1.0)}, path)
    return path


def test_shapes_equal_those_of_the_library(file: Path) -> None:
    with safe_open(file, "pt") as reference:
        slices = {name: reference.get_slice(name) for name in reference.keys()}  # noqa: SIM118
        expected = {name: Tensor(piece.get_dtype(), tuple(piece.get_shape())) for name, piece in slices.items()}
    assert read_tensors(file) == expected
    assert count_parameters(expected) == 3 * 5 + 7 + 1 and main_dtype(expected) == "F32" and main_dtype({}) is None


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_a_truncated_file_is_refused(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="some.safetensors"):
        read_tensors(file)


def test_a_longer_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="longer"):
        read_tensors(file)


def test_a_damaged_header_is_refused(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[8] = ord("x")
    file.write_bytes(bytes(content))
    with pytest.raises(ModelError, match="damaged"):
        read_tensors(file)
