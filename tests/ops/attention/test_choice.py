"""The best backend that is there is taken; why not a better one is told; a forced one that cannot run is refused."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from aitrain.errors import RecipeError
from aitrain.ops.attention import choice, varlen
from aitrain.ops.attention.choice import SWITCH, Request, backend_for, request_of
from aitrain.ops.attention.pattern import Pattern
from ops.attention.plain import tensors

HOPPER = Request("cuda", torch.bfloat16, 32, 8, 128, 128, capability=(9, 0))
Install = Callable[..., None]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(SWITCH, raising=False)
    for cached in (choice._chosen, choice._say, varlen.found):
        cached.cache_clear()
    yield
    for cached in (choice._chosen, choice._say, varlen.found):
        cached.cache_clear()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Pretend that just these are there; only the choice is asked here, none of them runs."""

    def current(q: Any, dropout_p: Any, window_size: Any, softcap: Any, enable_gqa: Any, scale: Any) -> None: ...
    def torchs(query: Any, *, scale: Any, window_size: Any, enable_gqa: Any) -> None: ...

    def put(*names: str, function: Callable[..., None] | None = None) -> None:
        for (module, attribute), stand_in in (
            (varlen.FLASH[3], current),
            (varlen.FLASH[2], current),
            (varlen.TORCHS, torchs),
        ):
            made = ModuleType(module)
            if module in names:
                setattr(made, attribute, function or stand_in)
            monkeypatch.setitem(sys.modules, module, made)

    monkeypatch.setattr(choice, "triton_fault", lambda: None)
    put()
    return put


ALL = ("flash_attn_interface", "flash_attn", "torch.nn.attention.varlen")


@pytest.mark.parametrize(
    ("changed", "there", "expected", "reasons"),
    [
        ({}, ALL, "flash-attn 3", []),
        ({}, ALL[1:], "flash-attn 2", ["flash_attn_interface.flash_attn_varlen_func cannot be imported"]),
        ({"capability": (8, 0)}, ALL, "flash-attn 2", ["made for compute capability 9.0|needs compute capability 9.0"]),
        ({"capability": (10, 0)}, ALL, "flash-attn 2", ["made for compute capability 9.0, this GPU has 10.0"]),
        ({}, ALL[2:], "varlen", ["cannot be imported", "cannot be imported"]),
        ({"dropout": True}, ALL, "flash-attn 2", ["no dropout"]),
        ({"dropout": True}, ALL[2:], "sdpa", ["", "", "no dropout", "no dropout"]),
        ({"softcap": True}, ALL, "flash-attn 3", []),
        ({"softcap": True}, ALL[2:], "flex", ["", "", "has no cap on the scores"]),
        ({}, (), "flex", ["", "", "cannot be imported"]),
        ({"windowed": True, "scaled": True}, ALL[2:], "varlen", ["", ""]),
        ({"dtype": torch.float32}, ALL, "flex", ["cannot compute in float32"] * 3),
        ({"dtype": torch.float64}, ALL, "sdpa", ["cannot compute in float64"] * 4),
        ({"width": 320, "value_width": 320}, ALL, "flex", ["takes heads up to 256, these are 320 wide"] * 3),
        ({"width": 20, "value_width": 20}, ALL, "flex", ["needs heads of a multiple of 8"] * 3),
        ({"width": 192}, ALL, "flex", ["needs values as wide as keys, these are 128 and 192 wide"] * 3),
        ({"width": 8, "value_width": 8}, (), "sdpa", ["", "", "", "needs heads of at least 16"]),
        ({"capability": (7, 5)}, ALL, "flex", ["needs compute capability"] * 3),
        ({"capability": None, "amd": True}, ALL, "flash-attn 2", ["not made for AMD GPUs"]),
        ({"capability": None, "amd": True}, (), "flex", ["not made for AMD", "cannot be", "not made for AMD"]),
        ({"device": "cpu", "capability": None}, ALL, "sdpa", ["needs a GPU, and this is the cpu"] * 4),
    ],
)
def test_best_that_is_there(
    changed: dict[str, Any], there: tuple[str, ...], expected: str, reasons: list[str], install: Install
) -> None:
    install(*there)
    found = backend_for(replace(HOPPER, **changed))
    assert found.name == expected
    better = [backend.name for backend in choice.BACKENDS]
    assert [name for name, _ in found.passed_over] == better[: better.index(expected)]
    for (_, told), reason in zip(found.passed_over, reasons, strict=True):
        assert any(part in told for part in reason.split("|")), told


def test_old_versions_lack_options(install: Install) -> None:
    def first(query: Any, is_causal: Any) -> None: ...

    install("torch.nn.attention.varlen", function=first)
    same = replace(HOPPER, key_heads=32)
    assert backend_for(same).name == "varlen"
    for changed, lacks in (({"windowed": True}, "sliding window"), ({"scaled": True}, "scale"), ({}, "key heads")):
        found = backend_for(replace(same if changed else HOPPER, **changed))
        assert found.name == "flex" and lacks in dict(found.passed_over)["varlen"]
    install("flash_attn", function=first)
    varlen.found.cache_clear()
    choice._chosen.cache_clear()
    assert backend_for(same).name == "flash-attn 2"
    assert "no cap" in dict(backend_for(replace(same, softcap=True)).passed_over)["flash-attn 2"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("auto", "flash-attn 3"),
        ("flash", "flash-attn 3"),
        ("varlen", "varlen"),
        ("flex", "flex"),
        ("sdpa", "sdpa"),
        ("documents", "documents"),
    ],
)
def test_forced(wanted: str, expected: str, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(*ALL)
    monkeypatch.setenv(SWITCH, wanted)
    assert backend_for(HOPPER).name == expected
    monkeypatch.delenv(SWITCH)
    assert backend_for(HOPPER).name == "flash-attn 3", "the environment is read at each call"


def test_forced_one_that_cannot_run(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("flash_attn")
    monkeypatch.setenv(SWITCH, "flash")
    assert backend_for(HOPPER).name == "flash-attn 2"
    with pytest.raises(RecipeError) as refused:
        backend_for(replace(HOPPER, dtype=torch.float32))
    for part in ("AITRAIN_ATTENTION=flash cannot be used here", "flash-attn 3: ", "flash-attn 2: cannot compute in"):
        assert part in str(refused.value)
    for name in ("varlen", "flex"):
        monkeypatch.setenv(SWITCH, name)
        with pytest.raises(RecipeError, match=f"{name}: needs a GPU, and this is the cpu"):
            backend_for(request_of(*tensors([3]), Pattern()))
    monkeypatch.setenv(SWITCH, "fast")
    with pytest.raises(RecipeError, match="unknown: write auto, flash, varlen, flex, sdpa, documents"):
        backend_for(HOPPER)


def test_said_once(install: Install, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    install("torch.nn.attention.varlen")
    caplog.set_level(logging.INFO, logger="aitrain.ops.attention.choice")
    for heads in (8, 16, 32):
        backend_for(replace(HOPPER, heads=heads))
    (said,) = caplog.messages
    assert said.startswith("attention of packed sequences: varlen (not flash-attn 3: flash_attn_interface.flash_attn")
    monkeypatch.setenv(SWITCH, "documents")
    backend_for(HOPPER)
    assert caplog.messages[1:] == ["attention of packed sequences: documents (AITRAIN_ATTENTION=documents)"]


def test_request() -> None:
    q, k, v = tensors([3], (4, 2), 6)
    asked = request_of(q, k, v[..., :5], Pattern(window=3, scale=1.0))
    assert asked == Request("cpu", torch.float64, 4, 2, 6, 5, windowed=True, scaled=True)
    assert request_of(q, k, v, Pattern(softcap=2.0, dropout=0.1)) == Request(
        "cpu", torch.float64, 4, 2, 6, 6, softcap=True, dropout=True
    )
