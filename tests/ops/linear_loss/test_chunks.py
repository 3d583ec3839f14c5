"""The chunked engine: which rows a chunk holds, what is summed in which type, and that chunks change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref

import pytest
import torch

from aitrain.ops.cross_entropy.terms import LossTerms
from aitrain.ops.linear_loss import chunks as subject
from aitrain.ops.linear_loss.chunks import Head, backward, forward, measured, statistics
from ops.linear_loss.plain import ALL_TERMS

WANTED = (True, True, True)
TILE = 256 if os.environ.get("AITRAIN_TEST_OPS_DEVICE") else 16
"""Rows of the smallest chunk."""


def draw(rows: int = 50, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    targets = torch.randint(19, (rows,))
    targets[::3] = -1
    return torch.randn(rows, 6).to(dtype), torch.randn(19, 6).to(dtype), targets


def head(weight: torch.Tensor, chunk_bytes: int, bias: bool = True, valid_rows: int | None = None) -> Head:
    vector = torch.linspace(-1, 1, len(weight), dtype=weight.dtype) if bias else None
    return Head(weight, vector, ALL_TERMS, chunk_bytes, valid_rows)


@pytest.mark.parametrize("budget", [1, 5000, 1 << 20], ids=["tiny", "several", "one"])
def test_chunks_change_nothing(budget: int) -> None:
    hidden, weight, targets = draw()
    one = torch.tensor(0.5, dtype=torch.float64)
    whole, part = head(weight, 1 << 30), head(weight, budget)
    right, found = (forward(hidden, h, targets, one, WANTED) for h in (whole, part))
    torch.testing.assert_close(found[0], right[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(list(found[1]), list(right[1]), rtol=1e-12, atol=1e-12)
    right_stats, stats = (statistics(hidden, h, targets) for h in (whole, part))
    torch.testing.assert_close(list(stats), list(right_stats), rtol=1e-12, atol=1e-12)
    upstream = subject.Statistics(*torch.randn(4, len(hidden), dtype=torch.float64))
    back = [backward(hidden, h, targets, right_stats, upstream, WANTED) for h in (whole, part)]
    torch.testing.assert_close(list(back[1]), list(back[0]), rtol=1e-12, atol=1e-12)
    losses, best = measured(hidden, part, targets)
    assert torch.equal(best, measured(hidden, whole, targets)[1]) and (best[targets < 0] == -1).all()
    assert not losses[targets < 0].any()


def test_a_chunk_keeps_to_its_budget_and_none_is_much_smaller() -> None:
    hidden = torch.empty(1, 4)
    for rows in (1, 15, 16, 17, 1000, 1024, 99_999):
        for budget in (1, 64 * 1000 * 4, 1 << 24):
            step = subject._chunk_rows(rows, 1000, hidden, budget)
            assert step % TILE == 0 and step <= max(TILE, budget // 4000)
            last = rows % step or step
            assert rows <= step or last > step - TILE * (rows // step + 2)


def test_no_logits_are_larger_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = draw(TILE * 20)
    made: list[int] = []
    original = subject._logits

    def logits(*given: torch.Tensor) -> torch.Tensor:
        out = original(*given)
        made.append(out.numel() * out.element_size())
        return out

    monkeypatch.setattr(subject, "_logits", logits)
    budget = TILE * 19 * 8 * 3  # three tiles of float64
    forward(hidden, head(weight, budget), targets, torch.tensor(1.0, dtype=torch.float64), WANTED)
    saved = statistics(hidden, head(weight, budget), targets)
    backward(hidden, head(weight, budget), targets, saved, saved, WANTED)
    measured(hidden, head(weight, budget), targets)
    assert len(made) >= 4 * 5 and max(made) <= budget


def test_rows_without_a_target_never_reach_the_products() -> None:
    hidden, weight, targets = draw()
    hidden[targets < 0] = float("nan")
    counted = int((targets >= 0).sum())  # a GPU has to be told
    one = torch.tensor(1.0, dtype=torch.float64)
    losses, gradients = forward(hidden, head(weight, 1, valid_rows=counted), targets, one, WANTED)
    assert losses.isfinite().all() and all(g is not None and g.isfinite().all() for g in gradients)
    assert not losses[targets < 0].any() and not gradients.hidden[targets < 0].any()  # type: ignore[index]


@pytest.mark.parametrize("spare", [0, 3, 100])
def test_a_bound_of_rows_instead_of_counting_them(monkeypatch: pytest.MonkeyPatch, spare: int) -> None:
    """What a GPU does, on any device: the index may hold some ignored rows behind those that count."""
    hidden, weight, targets = draw()
    bound = int((targets >= 0).sum()) + spare
    one, whole = torch.tensor(1.0, dtype=torch.float64), head(weight, 1 << 30)
    upstream = subject.Statistics(*torch.randn(4, len(hidden), dtype=torch.float64))

    def everything(layer: Head) -> list[torch.Tensor | None]:
        losses, gradients = forward(hidden, layer, targets, one, WANTED)
        saved = statistics(hidden, layer, targets)
        return [losses, *gradients, *saved, *backward(hidden, layer, targets, saved, upstream, WANTED)]

    right, best = everything(whole), measured(hidden, whole, targets)[1]
    original = subject._counting_rows
    monkeypatch.setattr(subject, "_counting_rows", lambda targets, _: original(targets, bound))
    layer = head(weight, 1, valid_rows=bound)
    for mine, theirs in zip(everything(layer), right, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert torch.equal(measured(hidden, layer, targets)[1], best)


def test_the_weights_gradient_is_summed_in_float32() -> None:
    hidden, weight, targets = draw(4096, torch.bfloat16)
    scale = torch.tensor(1.0)
    exact = forward(hidden.double(), head(weight.double(), 1 << 30), targets, scale.double(), WANTED)[1].weight
    many = forward(hidden, head(weight, 1), targets, scale, WANTED)[1].weight
    few = forward(hidden, head(weight, 1 << 30), targets, scale, WANTED)[1].weight
    assert exact is not None and many is not None and few is not None and many.dtype is torch.float32
    assert float((many - exact).norm()) <= 1.05 * float((few - exact).norm())


def test_small_parts_are_not_lost_in_a_large_sum() -> None:
    """640 chunks add 4 each: a bfloat16 that has reached 1024 stays there, because 1028 rounds to 1024."""
    rows = TILE * 640
    hidden, targets = torch.full((rows, 1), 16 / TILE, dtype=torch.bfloat16), torch.zeros(rows, dtype=torch.int64)
    weight = torch.zeros(4, 1, dtype=torch.bfloat16)
    part = torch.tensor(4.0, dtype=torch.bfloat16)
    assert sum([part] * 640, start=torch.zeros_like(part)) == 1024
    layer = Head(weight, None, LossTerms(), 1, None)
    found = forward(hidden, layer, targets, torch.tensor(1.0), WANTED)[1].weight
    assert found[:, 0].tolist() == [-3 * 2560.0, 2560.0, 2560.0, 2560.0]  # type: ignore[index]


def test_a_bound_of_rows_keeps_those_that_count_and_a_broken_one_shows() -> None:
    targets = torch.tensor([-1, 4, -1, 7, 2])
    unbound = subject._counting_rows(targets, None)
    assert unbound is None if targets.is_cuda else unbound.tolist() == [1, 3, 4]  # type: ignore[union-attr]
    assert subject._counting_rows(targets, 3).tolist() == [1, 3, 4]  # type: ignore[union-attr]
    assert subject._counting_rows(targets, 4).tolist() == [1, 3, 4, 0]  # type: ignore[union-attr]
    assert subject._counting_rows(targets.clamp(min=0), None) is None
    assert subject._counting_rows(targets, 5) is None
    values = torch.ones(5)
    assert subject._guarded(values, head(torch.ones(9, 1), 1, valid_rows=2), targets).isnan().all()
    assert torch.equal(subject._guarded(values, head(torch.ones(9, 1), 1, valid_rows=3), targets), values)


@pytest.mark.parametrize("which", ["none", "all ignored"])
def test_nothing_to_learn(which: str) -> None:
    hidden, weight, targets = draw()
    hidden, targets = (hidden[:0], targets[:0]) if which == "none" else (hidden, torch.full_like(targets, -1))
    losses, gradients = forward(hidden, head(weight, 1), targets, torch.tensor(1.0, dtype=torch.float64), WANTED)
    assert not losses.any() and all(g is not None and not g.any() for g in gradients)
    assert gradients.weight.shape == weight.shape  # type: ignore[union-attr]


def test_what_is_not_wanted_is_not_computed() -> None:
    hidden, weight, targets = draw()
    found = forward(hidden, head(weight, 1), targets, torch.tensor(1.0, dtype=torch.float64), (False, False, False))[1]
    assert found == (None, None, None)
    assert LossTerms() != ALL_TERMS


STEP = """
import json, os, resource
import torch
import torch.nn.functional as F
from aitrain.ops.linear_loss.op import linear_cross_entropy, linear_logprobs

ROWS, WIDTH, CLASSES = 1024, 32, 32000

def eager(hidden, weight, targets):
    F.cross_entropy(F.linear(hidden, weight), targets).backward()

def fused(hidden, weight, targets):
    linear_cross_entropy(hidden, weight, targets).backward()

def logprobs(hidden, weight, targets):
    linear_logprobs(hidden, weight, targets).logprobs.mean().backward()

torch.manual_seed(0)
tensors = torch.randn(ROWS, WIDTH), torch.randn(CLASSES, WIDTH) / 8, torch.randint(CLASSES, (ROWS,))
peaks = {}
for step in (eager, fused, logprobs):
    read, write = os.pipe()
    if os.fork() == 0:
        hidden, weight, targets = tensors
        leaves = hidden.requires_grad_(), weight.requires_grad_()
        with open("/proc/self/statm") as file:
            before = int(file.read().split()[1]) * resource.getpagesize()
        step(*leaves, targets)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        os.write(write, json.dumps([peak, *(float(leaf.grad.norm()) for leaf in leaves)]).encode())
        os._exit(0)
    os.close(write)
    with open(read) as file:
        peaks[step.__name__] = json.load(file)
    os.wait()
print(json.dumps(peaks))
"""


def test_one_chunk_of_logits_lives_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    plain = subject._logits

    def counted(x: torch.Tensor, head: Head) -> torch.Tensor:
        assert all(logits() is None for logits in made), "the chunk before is still held"
        logits = plain(x, head)
        made.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(subject, "_logits", counted)
    hidden, weight, targets = draw(4 * TILE)
    layer, one = head(weight, 1), torch.tensor(0.5, dtype=torch.float64)
    forward(hidden, layer, targets, one, WANTED)
    measured(hidden, layer, targets)
    saved = statistics(hidden, layer, targets)
    backward(hidden, layer, targets, saved, saved, WANTED)
    assert len(made) >= 4 * 2, "one chunk proves nothing"


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux to tell a process's memory")
def test_a_step_needs_half_the_memory_at_most() -> None:
    """Memory as the operating system counts it, each step in a fork of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "AITRAIN_OPS": "reference"}
    # every block is given back when it is freed: else glibc keeps some, how many depends on where its heap is
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    command = [sys.executable, "-c", STEP]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    logits = 1024 * 32000 * 4
    peak, *slopes = found["eager"]
    assert peak >= 2 * logits, "the measure itself is wrong: eager holds the logits and their gradient at least"
    for name in ("fused", "logprobs"):
        assert found[name][0] <= peak / 2, f"{name}: {found[name][0] / 1e6:.0f} MB, eager: {peak / 1e6:.0f} MB"
        assert found[name][1:] == pytest.approx(slopes, rel=1e-4)
