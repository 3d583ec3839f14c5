"""The header reader agrees with the gguf package and refuses damage."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from gguf_files import write_gguf

from aitrain.config.model import Model
from aitrain.errors import ModelError
from aitrain.models.folder import Kind, inspect
from aitrain.models.gguf_header import read_header


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> Path:
    write_gguf(folder, tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def test_header_equals_that_of_the_package(file: Path) -> None:
    header, reference = read_header(file), gguf.GGUFReader(file)
    assert header.shapes == {tensor.name: tuple(map(int, tensor.shape)) for tensor in reference.tensors}
    assert header.types == {tensor.name: int(tensor.tensor_type) for tensor in reference.tensors}
    assert header.fields["llama.context_length"] == 512
    assert header.fields["tokenizer.ggml.eos_token_id"] == 2
    assert header.fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert header.fields["tokenizer.ggml.tokens"] == 2048
    assert header.parameters() == 1049728


def test_facts_equal_those_of_the_folder(file: Path, folder: Path) -> None:
    found, reference = inspect(Model(path=str(file))), inspect(Model(path=str(folder)))
    assert (found.kind, found.faults) == (Kind.gguf, [])
    for name in ("context_tokens", "hidden_size", "layers", "vocab_size", "intermediate_size", "parameters", "tied"):
        assert getattr(found, name) == getattr(reference, name), name
    assert found.key_value_share == 0.5 and found.has_chat_template


@pytest.mark.parametrize("keep", [0, 3, 30, 2000])
def test_a_truncated_header_is_refused(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="cannot be read as a GGUF file"):
        read_header(file)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("GGML" + "x" * 100)
    with pytest.raises(ModelError, match="does not begin with GGUF"):
        read_header(tmp_path / "x.gguf")
