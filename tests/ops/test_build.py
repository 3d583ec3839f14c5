"""A CUDA source is compiled once per content, torch and GPU; when it cannot be, the reason is said."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from aitrain.ops import build
from aitrain.ops.build import BuildError, architectures, cache_folder, find_nvcc, library


def fake_nvcc(folder: Path, body: str) -> None:
    """Put a script in the place of nvcc: it counts its calls."""
    (folder / "bin").mkdir(parents=True)
    script = folder / "bin" / "nvcc"
    script.write_text(
        f'#!/bin/bash\nif [ "$1" = --version ]; then echo 13; exit; fi\necho "$@" >> {folder}/calls\n{body}\n'
    )
    script.chmod(0o755)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AITRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    build._version.cache_clear()
    path = tmp_path / "op.cu"
    path.write_text("one")
    return path


def test_compiled_once_per_content_and_gpu(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fake_nvcc(tmp_path / "cuda", 'while [ "$1" != -o ]; do shift; done; echo library > "$2"; echo registers >&2')
    calls = tmp_path / "cuda" / "calls"
    with caplog.at_level(logging.INFO):
        first = library("op", [source], ["90"])
    assert "compiling op.cu for sm_90" in caplog.text, "it takes a minute, so it is never silent"
    assert first.read_text() == "library\n"
    assert first.parent == cache_folder() == tmp_path / "cache" / "ops"
    assert "registers" in first.with_suffix(".log").read_text()
    assert library("op", [source], ["90"]) == first
    assert len(calls.read_text().splitlines()) == 1
    others = {library("op", [source], ["80", "90"])}
    source.write_text("two")
    others.add(library("op", [source], ["90"]))
    assert len(others | {first}) == len(calls.read_text().splitlines()) == 3
    assert "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=sm_90" in calls.read_text()


def test_a_compiler_that_fails_is_quoted(source: Path, tmp_path: Path) -> None:
    fake_nvcc(tmp_path / "cuda", 'echo "op.cu(1): error: what is one?" >&2; exit 2')
    with pytest.raises(BuildError, match=r"failed on op.cu: .*error: what is one\?"):
        library("op", [source], ["90"])
    assert not list(cache_folder().glob("*.so"))


def test_no_compiler(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", "")
    assert find_nvcc() is None
    with pytest.raises(BuildError, match="nvcc was not found"):
        library("op", [source], ["90"])


def test_architectures_of_the_gpus_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: ((9, 0), (8, 0), (9, 0))[i])
    assert architectures() == ("80", "90")
