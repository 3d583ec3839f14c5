"""Every attention backend on the GPU against each document alone in float64, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ops.tolerance import assert_close_as_torch

from aitrain.ops.attention import choice, sdpa
from aitrain.ops.attention.choice import BACKENDS, SWITCH, backend_for, faults, request_of
from aitrain.ops.attention.documents import Documents, documents_of
from aitrain.ops.attention.op import attend
from aitrain.ops.attention.pattern import Pattern

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
PACKS = {"mixed": [130, 1, 700, 3, 0, 64, 64, 62], "one": [1024], "tokens": [1] * 100 + [924]}
PATTERNS = {
    "causal": Pattern(),
    "both ways": Pattern(causal=False),
    "window": Pattern(window=100),
    "window both ways": Pattern(window=50, causal=False),
    "softcap": Pattern(softcap=3.0),
    "softcap in a window": Pattern(softcap=3.0, window=70, scale=0.2),
}


@pytest.fixture(autouse=True)
def unforced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(SWITCH, raising=False)
    torch.manual_seed(0)
    yield
    choice._chosen.cache_clear()


def tensors(total: int, dtype: torch.dtype, heads: int = 8, shared: int = 2, width: int = 64) -> list[torch.Tensor]:
    shapes = [(total, n, width) for n in (heads, shared, shared)]
    return [torch.randn(shape, device=CUDA, dtype=dtype).requires_grad_() for shape in shapes]


def documents(lengths: list[int]) -> Documents:
    return Documents(torch.tensor([0, *lengths], device=CUDA).cumsum(0), sum(lengths), max(lengths))


def able(name: str, tensors: list[torch.Tensor], pattern: Pattern) -> Any:
    """The backend, or a skip that says why it cannot."""
    (backend,) = (entry for entry in BACKENDS if entry.name == name)
    fault = next(faults(backend, request_of(*tensors, pattern)), None)
    if fault is not None:
        pytest.skip(f"{name} {fault}")
    return backend


@pytest.mark.parametrize(
    ("pattern", "dtype"),
    [(pattern, torch.bfloat16) for pattern in PATTERNS] + [("softcap in a window", torch.float32)],
)
@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("name", [entry.name for entry in BACKENDS if entry.name != "documents"])
def test_as_near_as_torch(name: str, pack: str, pattern: str, dtype: torch.dtype) -> None:
    lengths, wanted = PACKS[pack], PATTERNS[pattern]
    inputs = tensors(sum(lengths), dtype)
    backend = able(name, inputs, wanted)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    upstream = torch.randn(inputs[0].shape, device=CUDA, dtype=dtype)
    results = []
    for run, some in ((backend.run, inputs), (sdpa.one_by_one, inputs), (sdpa.one_by_one, wide)):
        out = run(*some, documents(lengths), wanted)
        results.append((out, *torch.autograd.grad(out, some, upstream.to(out.dtype))))
    for number, (ours, torchs, exact) in enumerate(zip(*results, strict=True)):
        # of fp32, flex multiplies in TF32 only where torch does; its sums have another order
        assert_close_as_torch(ours.detach(), torchs.detach(), exact.detach(), factor=3.0 if number else 2.0)


@pytest.mark.parametrize("name", ["flash-attn 2", "varlen", "sdpa"])
def test_nan_stays_in_its_document(name: str) -> None:
    """Not promised of flash-attn 3 and flex, whose tiles reach over a boundary: 0 times NaN is NaN there."""
    inputs = [x.detach() for x in tensors(sum(PACKS["mixed"]), torch.bfloat16)]
    backend = able(name, inputs, Pattern())
    for x in inputs:
        x[131:831] = float("nan")
        x.requires_grad_()
    out = backend.run(*inputs, documents(PACKS["mixed"]), Pattern())
    out.sum().backward()
    for x in (out, *(x.grad for x in inputs)):
        assert x is not None and x[:131].isfinite().all() and x[831:].isfinite().all()


def test_nothing_is_read_back() -> None:
    """Neither finding the documents nor attending waits for the GPU (sdpa does: it needs the lengths)."""
    inputs = tensors(1024, torch.bfloat16)
    if backend_for(request_of(*inputs, Pattern())).name in ("flex", "sdpa"):
        pytest.skip("no kernel of FlashAttention is there")
    positions = torch.cat([torch.arange(n, device=CUDA) for n in PACKS["mixed"]])[None]
    attend(*inputs, documents_of(positions, max_documents=16), Pattern()).sum().backward()  # loads what it needs
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend(*inputs, documents_of(positions, max_documents=16), Pattern()).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", [entry.name for entry in BACKENDS[:5]])
def test_memory_of_32k_tokens(name: str) -> None:
    lengths = [1000] * 32 + [768]
    inputs = tensors(sum(lengths), torch.bfloat16)
    backend = able(name, inputs, Pattern(window=512))
    found = documents(lengths)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    backend.run(*inputs, found, Pattern(window=512)).sum().backward()
    used = (torch.cuda.max_memory_allocated() - before) / 2**20
    assert used < 1500, f"{used:.0f} MiB; a mask of 32,768 squared would be 1,024 as bool, the scores 16,384"
