"""Which implementation runs: by device, by `AITRAIN_OPS`, by what is installed; and what the log says of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from aitrain.errors import RecipeError
from aitrain.ops import backend

ON_CPU = torch.zeros(1)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test decides anew, and leaves no decision behind."""
    monkeypatch.delenv("AITRAIN_OPS", raising=False)
    backend._decided.cache_clear()
    yield
    backend._decided.cache_clear()


@pytest.mark.parametrize("switch", ["auto", "reference", None])
def test_the_cpu_runs_plain_pytorch(switch: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if switch is not None:
        monkeypatch.setenv("AITRAIN_OPS", switch)
    assert not backend.use_kernels(ON_CPU)


def test_the_switch_is_read_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    answers = []
    for value in ("reference", "triton", "auto", "triton"):
        monkeypatch.setenv("AITRAIN_OPS", value)
        answers.append(backend.use_kernels(ON_CPU))
    assert answers == [False, True, False, True]


def test_an_unknown_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITRAIN_OPS", "cuda")
    with pytest.raises(RecipeError, match="AITRAIN_OPS=cuda is unknown: write auto, reference or triton"):
        backend.use_kernels(ON_CPU)


def test_kernels_on_the_cpu_need_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("AITRAIN_OPS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RecipeError, match="set TRITON_INTERPRET=1 as well"):
        backend.use_kernels(ON_CPU)


def test_a_missing_triton_is_an_error_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "triton_fault", lambda: "Triton cannot be imported (gone)")
    monkeypatch.setenv("AITRAIN_OPS", "triton")
    with pytest.raises(
        RecipeError, match=r"AITRAIN_OPS=triton, but Triton cannot be imported \(gone\): install triton"
    ):
        backend.use_kernels(ON_CPU)


def test_a_missing_triton_is_told_once_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend, "triton_fault", lambda: "Triton cannot be imported (gone)")
    with caplog.at_level(logging.INFO, logger=backend.__name__):
        assert [backend._decided("cuda", "auto", "0") for _ in range(3)] == [False] * 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "plain PyTorch runs in place of the fused kernels" in caplog.text


def test_kernels_are_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(backend, "triton_fault", lambda: None)
    with caplog.at_level(logging.INFO, logger=backend.__name__):
        assert [backend._decided("cuda", "triton", "0") for _ in range(3)] == [True] * 3
        assert not backend._decided("cuda", "reference", "0")
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "ops: Triton kernels on cuda",
        "ops: plain PyTorch on cuda",
    ]
