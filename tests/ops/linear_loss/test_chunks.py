"""The chunked engine: which rows a chunk holds, what is summed in which type, and that chunks change nothing."""

from __future__ import annotations

import pytest
import torch

from aitrain.ops.cross_entropy.terms import LossTerms
from aitrain.ops.linear_loss import chunks as subject
from aitrain.ops.linear_loss.chunks import Head, backward, forward, measured, statistics
from ops.linear_loss.plain import ALL_TERMS

WANTED = (True, True, True)


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
            assert step % 16 == 0 and step <= max(16, budget // 4000)
            last = rows % step or step
            assert rows <= step or last > step - 16 * (rows // step + 2)


def test_rows_without_a_target_never_reach_the_products() -> None:
    hidden, weight, targets = draw()
    hidden[targets < 0] = float("nan")
    losses, gradients = forward(hidden, head(weight, 1), targets, torch.tensor(1.0, dtype=torch.float64), WANTED)
    assert losses.isfinite().all() and all(g is not None and g.isfinite().all() for g in gradients)
    assert not losses[targets < 0].any() and not gradients.hidden[targets < 0].any()  # type: ignore[index]


def test_the_weights_gradient_is_summed_in_float32() -> None:
    hidden, weight, targets = draw(4096, torch.bfloat16)
    scale = torch.tensor(1.0)
    exact = forward(hidden.double(), head(weight.double(), 1 << 30), targets, scale.double(), WANTED)[1].weight
    many = forward(hidden, head(weight, 1), targets, scale, WANTED)[1].weight
    few = forward(hidden, head(weight, 1 << 30), targets, scale, WANTED)[1].weight
    assert exact is not None and many is not None and few is not None and many.dtype is torch.float32
    assert float((many - exact).norm()) <= 1.05 * float((few - exact).norm())


def test_a_bound_of_rows_keeps_those_that_count_and_a_broken_one_shows() -> None:
    targets = torch.tensor([-1, 4, -1, 7, 2])
    assert subject._counting_rows(targets, None).tolist() == [1, 3, 4]  # type: ignore[union-attr]
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
