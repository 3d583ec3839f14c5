"""The row passes of the CPU against autograd through the oracle."""

from __future__ import annotations

import pytest
import torch

from aitrain.errors import ShapeError
from aitrain.ops.cross_entropy import reference, rows
from aitrain.ops.cross_entropy.rows import Statistics
from aitrain.ops.cross_entropy.terms import LossTerms

TERMS = [
    LossTerms(),
    LossTerms(label_smoothing=0.1),
    LossTerms(z_loss=0.01),
    LossTerms(softcap=3.0, logit_scale=0.5),
    LossTerms(logit_scale=2.0, softcap=5.0, label_smoothing=0.2, z_loss=0.05),
]
IDS = ["plain", "smoothing", "z", "cap", "all"]


def draw(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    targets = torch.tensor([0, -1, 12, 5, -1, 12])
    return (torch.randn(6, 13, dtype=torch.float64) * 2).to(dtype), targets


def labels(targets: torch.Tensor) -> torch.Tensor:
    return torch.where(targets < 0, -100, targets)


@pytest.mark.parametrize("terms", TERMS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("apart", [False, True])
def test_loss_and_gradient(terms: LossTerms, dtype: torch.dtype, apart: bool) -> None:
    logits, targets = draw(dtype)
    exact = logits.double().requires_grad_()
    expected = 0.25 * reference.row_losses(exact, labels(targets), terms)
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    given = logits.clone()
    out = torch.full_like(given, 7.0) if apart else None
    scale = torch.tensor(0.25, dtype=torch.promote_types(dtype, torch.float32))
    losses = rows.loss_and_gradient_(given, targets, scale, terms, out)
    close = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]  # one rounding of the gradient
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=max(1e-12, min(close, 1e-5)), atol=1e-6)
    torch.testing.assert_close((given if out is None else out).double(), wanted, rtol=close, atol=close / 8)
    if apart:
        assert torch.equal(given, logits)


@pytest.mark.parametrize("terms", [LossTerms(), LossTerms(logit_scale=0.5, softcap=3.0)], ids=["plain", "cap"])
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
def test_statistics_and_their_gradient(terms: LossTerms, mean: bool, entropy: bool) -> None:
    logits, targets = draw()
    exact = logits.clone().requires_grad_()
    z, kept = reference.capped(exact, terms), targets >= 0
    spread = torch.distributions.Categorical(logits=z)
    right = [z.logsumexp(1), z.gather(1, targets.clamp(min=0)[:, None])[:, 0], z.mean(1), spread.entropy()]
    right = [torch.where(kept, x, 0.0) for x in right]
    found = rows.statistics(logits, targets, terms, mean, entropy)
    asked = [True, True, mean, entropy]
    for value, expected, wanted in zip(found, right, asked, strict=True):
        torch.testing.assert_close(value, expected.detach() if wanted else torch.zeros_like(expected))
    upstream = [torch.randn(6, dtype=torch.float64) for _ in right]
    total = sum((u * x).sum() for u, x, wanted in zip(upstream, right, asked, strict=True) if wanted)
    (expected,) = torch.autograd.grad(total, exact)
    given = logits.clone()
    rows.gradient_(given, targets, found, Statistics(*upstream), terms, mean, entropy)
    torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), float("-inf")])
def test_an_ignored_row_gives_zeros_whatever_stands_there(bad: float) -> None:
    logits, targets = draw()
    logits[1] = bad
    scale = torch.tensor(1.0, dtype=torch.float64)
    made = logits.clone()
    losses = rows.loss_and_gradient_(made, targets, scale, LossTerms())
    assert losses[1] == 0 and not made[1].any() and losses.isfinite().all()
    found = rows.statistics(logits, targets, LossTerms())
    assert all(value[1] == 0 for value in found)
    back = logits.clone()
    ones = torch.ones(6, dtype=torch.float64)
    rows.gradient_(back, targets, found, Statistics(ones, ones, ones, ones), LossTerms())
    assert not back[1].any() and back.isfinite().all()


def test_a_class_of_probability_zero_has_no_gradient() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 1.0]])
    made = logits.clone()
    losses = rows.loss_and_gradient_(made, torch.tensor([2]), torch.tensor(1.0), LossTerms())
    assert losses.isfinite().all() and made[0, 1] == 0 and made.isfinite().all()


def test_a_target_outside_the_classes_shows_where_nobody_could_look() -> None:
    logits, targets = draw()
    targets[3] = 13
    scale, wrong = torch.tensor(1.0, dtype=torch.float64), torch.arange(6) == 3
    found = rows.statistics(logits, targets, LossTerms())
    assert torch.equal(found.picked.isnan(), wrong)
    back = logits.clone()
    rows.gradient_(back, targets, found, Statistics(*torch.ones(4, 6, dtype=torch.float64)), LossTerms())
    losses = rows.loss_and_gradient_(logits, targets, scale, LossTerms())
    assert all(torch.equal(x, wrong) for x in (losses.isnan(), logits.isnan().any(1), back.isnan().any(1)))


@pytest.mark.usefixtures("on_the_cpu")  # nobody can look at targets on a GPU without waiting for it
def test_targets() -> None:
    given = torch.tensor([3, 7, 0, 7])
    assert rows.targets_of(given, 7, 7).tolist() == [3, -1, 0, -1]
    assert rows.targets_of(torch.tensor([2, 1]), 2, 5).tolist() == [-1, 1]  # a class may be the one that is ignored
    for bad in (5, -1, -100):
        with pytest.raises(ShapeError, match=rf"targets\[1\]={bad} is outside 0..4 and not ignore_index=-7"):
            rows.targets_of(torch.tensor([0, bad]), -7, 5)


def test_numbers_to_write_into_are_aligned() -> None:
    made = rows.zeros(5, torch.float32, torch.device("cpu"))
    assert [x.shape for x in made] == [(5,)] * 4 and all(x.data_ptr() % 16 == 0 for x in made)
