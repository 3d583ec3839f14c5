"""Headers are read as safetensors itself reads them, and damage is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from aitrain.errors import ModelError
from aitrain.models.safetensors_header import count_parameters, read_shapes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16), "c": torch.tensor(1.0)}, path)
    return path


def test_shapes_equal_those_of_the_library(file: Path) -> None:
    with safe_open(file, "pt") as reference:
        assert read_shapes(file) == {name: tuple(reference.get_slice(name).get_shape()) for name in reference.keys()}  # noqa: SIM118
    assert count_parameters(read_shapes(file)) == 3 * 5 + 7 + 1


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_a_truncated_file_is_refused(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="some.safetensors"):
        read_shapes(file)


def test_a_longer_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="longer"):
        read_shapes(file)


def test_a_damaged_header_is_refused(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[8] = ord("x")
    file.write_bytes(bytes(content))
    with pytest.raises(ModelError, match="damaged"):
        read_shapes(file)
