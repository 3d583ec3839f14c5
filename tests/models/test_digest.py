"""A model is known again by its files; large ones by their size and pieces of their content."""

from pathlib import Path

import pytest

from aitrain.models import digest
from aitrain.models.digest import file_digest, model_digests, text_digest


def test_every_file_that_decides_the_model_counts(tmp_path: Path) -> None:
    for name in ("config.json", "model-00001.safetensors", "modeling.py", "README.md", "notes.txt"):
        (tmp_path / name).write_text(name)
    before = model_digests(tmp_path)
    assert list(before) == ["config.json", "model-00001.safetensors", "modeling.py"]
    (tmp_path / "model-00001.safetensors").write_text("model-00002.safetensors")
    after = model_digests(tmp_path)
    assert [name for name in before if before[name] != after[name]] == ["model-00001.safetensors"]


@pytest.mark.parametrize("place", [0, 1 << 19, -1])
def test_a_small_file_counts_whole(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a"
    content = bytearray(1 << 20)
    path.write_bytes(content)
    before = file_digest(path)
    content[place] = 1
    path.write_bytes(content)
    assert file_digest(path) != before


@pytest.mark.parametrize("change", ["header", "end", "everywhere", "size"])
def test_a_large_file_is_sampled(tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "WHOLE_BYTES", 1 << 16)
    monkeypatch.setattr(digest, "PIECE_BYTES", 16)
    path = tmp_path / "a"
    content = bytearray(1 << 20)
    path.write_bytes(content)
    before = file_digest(path)
    if change == "header":
        content[8] = 1
    elif change == "end":
        content[-1] = 1
    elif change == "everywhere":
        content = bytearray(b"\x01" * len(content))
    else:
        content.append(0)
    path.write_bytes(content)
    assert file_digest(path) != before


def test_plain_values() -> None:
    assert text_digest({"a": 1, "b": [2]}) == text_digest({"b": [2], "a": 1}) != text_digest({"a": 1, "b": [3]})
