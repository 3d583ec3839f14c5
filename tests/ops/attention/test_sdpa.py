"""Documents through PyTorch's attention equal each document alone, in memory that does not grow with the square."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from aitrain.ops.attention import sdpa
from aitrain.ops.attention.documents import Documents
from aitrain.ops.attention.pattern import Pattern
from ops.attention.plain import PACKS, PATTERNS, alone, bounds, each_alone, tensors
from ops.tolerance import assert_close_as_torch

Way = Callable[..., torch.Tensor]
WAYS = {"batches": sdpa.in_batches, "one by one": sdpa.one_by_one}


@pytest.mark.parametrize("block", [512, 4])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("way", WAYS)
def test_equals_each_alone(way: str, pattern: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa, "BLOCK", block)
    for lengths in PACKS.values():
        q, k, v = tensors(lengths)
        found = WAYS[way](q, k, v, Documents(bounds(lengths), sum(lengths)), Pattern(**PATTERNS[pattern]))
        expected = each_alone(q, k, v, lengths, **PATTERNS[pattern])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        upstream = torch.randn_like(expected)
        gradients = torch.autograd.grad(found, (q, k, v), upstream, retain_graph=True)
        for ours, theirs in zip(gradients, torch.autograd.grad(expected, (q, k, v), upstream), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
        again = torch.autograd.grad(found, (q, k, v), upstream)
        assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0, "window": 3}])
def test_gradcheck(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa, "BLOCK", 4)
    lengths = [3, 1, 6]
    documents = Documents(bounds(lengths), 10)
    q, k, v = tensors(lengths, (2, 1), 2)
    assert torch.autograd.gradcheck(lambda *x: sdpa.in_batches(*x, documents, Pattern(**options)), (q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", ["causal", "softcap in a window"])
def test_as_exact_as_torch(pattern: str, dtype: torch.dtype) -> None:
    lengths, options = PACKS["mixed"], PATTERNS[pattern]
    q, k, v = tensors(lengths, dtype=dtype)
    found = sdpa.in_batches(q, k, v, Documents(bounds(lengths), sum(lengths)), Pattern(**options))
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    torchs = torch.cat([alone(*part, **options) for part in parts])
    exact = each_alone(q, k, v, lengths, **options)
    assert_close_as_torch(found.detach(), torchs.detach(), exact.detach())
    upstream = torch.randn_like(exact)
    ours, plain = (torch.autograd.grad(x, (q, k, v), upstream.to(dtype)) for x in (found, torchs))
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    best = torch.autograd.grad(each_alone(*wide, lengths, **options), wide, upstream.to(dtype).double())
    for a, b, c in zip(ours, plain, best, strict=True):
        assert_close_as_torch(a, b, c, factor=3.0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("sick", range(len(PACKS["mixed"])))
def test_nan_stays_in_its_document(way: str, pattern: str, sick: int) -> None:
    lengths = PACKS["mixed"]
    at = slice(sum(lengths[:sick]), sum(lengths[: sick + 1]))
    q, k, v = tensors(lengths)
    poisoned = [x.detach().clone() for x in (q, k, v)]
    for x in poisoned:
        x[at] = float("nan")
        x.requires_grad_()
    documents = Documents(bounds(lengths), sum(lengths))
    out = WAYS[way](*poisoned, documents, Pattern(**PATTERNS[pattern]))
    out.sum().backward()
    for x in (out, *(x.grad for x in poisoned)):
        assert x is not None and x[at].isnan().any()
        assert torch.cat([x[: at.start], x[at.stop :]]).isfinite().all()


def test_values_of_another_width_and_views() -> None:
    lengths = [3, 8, 8]
    q, k, v = tensors(lengths)
    wide = torch.cat([v, v * 2], -1)[..., :11]
    views = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k)]
    found = sdpa.in_batches(*views, wide, Documents(bounds(lengths), 19), Pattern())
    torch.testing.assert_close(found, each_alone(q, k, wide, lengths))


def test_like_lengths_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = sdpa.attend_rows
    monkeypatch.setattr(sdpa, "attend_rows", lambda q, *rest: calls.append(tuple(q.shape)) or real(q, *rest))
    lengths = [1] * 500 + [100, 104, 99, 97, 30]
    q, k, v = tensors(lengths, (2, 2), 4)
    documents = Documents(bounds(lengths), sum(lengths))
    found = sdpa.in_batches(q, k, v, documents, Pattern())
    assert sorted(calls) == [(1, 2, 30, 4), (4, 2, 104, 4), (500, 2, 1, 4)]
    torch.testing.assert_close(found, sdpa.one_by_one(q, k, v, documents, Pattern()), rtol=1e-10, atol=1e-12)


def test_padding_is_not_seen() -> None:
    lengths = [33, 36, 34]
    q, k, v = tensors(lengths)
    for causal in (True, False):
        found = sdpa.in_batches(q, k, v, Documents(bounds(lengths), sum(lengths)), Pattern(causal))
        torch.testing.assert_close(found, each_alone(q, k, v, lengths, causal=causal))


def test_rounding_wastes_less_than_an_eighth() -> None:
    for length in range(1, 5000):
        assert length <= sdpa._rounded(length) < length * 1.125
    assert len({sdpa._rounded(length) for length in range(1, 2**15 + 1)}) <= 16 + 8 * 11


def test_dropout_drops() -> None:
    lengths = [40, 40]
    q, k, v = (x.detach() for x in tensors(lengths))
    documents = Documents(bounds(lengths), 80)
    for options in ({}, {"softcap": 3.0}):
        kept = sdpa.in_batches(q, k, v, documents, Pattern(**options))
        mean = torch.stack([sdpa.in_batches(q, k, v, documents, Pattern(**options, dropout=0.5)) for _ in range(300)])
        assert not torch.equal(mean[0], mean[1]) and not torch.equal(mean[0], kept)
        assert (mean.mean(0) - kept).norm() < 0.12 * kept.norm()  # unbiased: falls with 1 / sqrt(300) from about 1.4


MEMORY = """
import resource, sys, torch
from aitrain.ops.attention.documents import Documents
from aitrain.ops.attention.pattern import Pattern
from aitrain.ops.attention.sdpa import in_batches
torch.set_num_threads(1)
def run(total, lengths, **options):
    x = [torch.randn(total, heads, 8, requires_grad=True) for heads in (2, 1, 1)]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    in_batches(*x, Documents(bounds, total), Pattern(**options)).sum().backward()
run(600, [600]); run(600, [600], window=5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(16384, [1000] * 16 + [384]); run(16384, [16384], window=64)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_of_16k_tokens() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100, "MiB; a mask of 16,384 squared would be 256 as bool, its scores 2,048"
