"""The Triton kernels, interpreted, against torch in the same type and in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aitrain.ops.cross_entropy import kernel, reference, rows
from aitrain.ops.cross_entropy.op import cross_entropy
from aitrain.ops.cross_entropy.rows import Statistics
from aitrain.ops.cross_entropy.terms import LossTerms
from ops.passes import assert_passes, draw
from ops.tolerance import assert_close_as_torch

PLAIN, SMOOTH, CAP = LossTerms(), LossTerms(label_smoothing=0.1), LossTerms(logit_scale=0.5, softcap=3.0)
ALL = LossTerms(logit_scale=2.0, softcap=5.0, label_smoothing=0.2, z_loss=0.05)
TERMS = pytest.mark.parametrize("terms", [PLAIN, SMOOTH, CAP, ALL], ids=["plain", "smoothing", "cap", "all"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITRAIN_OPS", "triton")


def targets_for(count: int, classes: int, ignored: str = "some") -> torch.Tensor:
    torch.manual_seed(3)
    made = torch.randint(classes, (count,))
    if ignored == "all":
        made[:] = -100
    elif count > 1:
        made[::3] = -100
        made[1] = classes - 1
    return made


def torchs(terms: LossTerms, targets: torch.Tensor) -> Any:
    return lambda logits: reference.row_losses(logits, targets, terms)


@DTYPES
@TERMS
@pytest.mark.parametrize(
    ("count", "classes"), [(5, 37), (1, 1), (3, 2), (4, 4200)], ids=["odd", "one", "two", "two blocks per row"]
)
def test_each_row(count: int, classes: int, terms: LossTerms, dtype: torch.dtype) -> None:
    targets = targets_for(count, classes)
    inputs = {"logits": draw(count, classes, dtype=dtype, scale=2.0)}
    ours = lambda logits: cross_entropy(logits, targets, terms=terms, reduction="none")  # noqa: E731
    assert_passes(ours, torchs(terms, targets), inputs, [torch.randn(count)])


@DTYPES
@TERMS
@pytest.mark.parametrize("ignored", ["some", "all"])
def test_summed_with_an_upstream_gradient(terms: LossTerms, dtype: torch.dtype, ignored: str) -> None:
    targets = targets_for(6, 19, ignored)
    inputs = {"logits": draw(6, 19, dtype=dtype, scale=2.0)}
    ours = lambda logits: cross_entropy(logits, targets, terms=terms, reduction="sum", num_items=3.0)  # noqa: E731
    theirs = lambda logits: reference.row_losses(logits, targets, terms).sum() / 3.0  # noqa: E731
    assert_passes(ours, theirs, inputs, [torch.tensor(-2.5)])


@pytest.mark.parametrize("layout", ["columns", "turned", "expanded"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_layouts(layout: str, reduction: str) -> None:
    targets = targets_for(5, 8)
    inputs = {"logits": draw(5, 8, layout=layout)}
    ours = lambda logits: cross_entropy(logits, targets, reduction=reduction)  # noqa: E731
    theirs = torchs(PLAIN, targets) if reduction == "none" else lambda logits: torchs(PLAIN, targets)(logits).sum()
    upstream = torch.randn(5) if reduction == "none" else torch.tensor(1.5)
    assert_passes(ours, theirs, inputs, [upstream])


def test_no_rows() -> None:
    logits = torch.empty(0, 7, requires_grad=True)
    loss = cross_entropy(logits, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and logits.grad.shape == (0, 7)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.float16, 6e4)])
def test_huge_logits(dtype: torch.dtype, size: float) -> None:
    logits = torch.tensor([[size, -size, 0.0], [-size, -size, -size]], dtype=dtype)
    targets = torch.tensor([1, 2])
    inputs = {"logits": logits}
    ours = lambda logits: cross_entropy(logits, targets, reduction="none")  # noqa: E731
    assert_passes(ours, torchs(PLAIN, targets), inputs, [torch.ones(2)])


def test_rows_with_minus_infinity() -> None:
    logits = draw(3, 9)
    logits[0, 4], logits[1, :] = float("-inf"), float("-inf")
    targets = torch.tensor([2, -100, 8])
    made = logits.clone()
    losses = kernel.loss_and_gradient_(made, torch.tensor([2, -1, 8]), torch.tensor(1.0), PLAIN)
    expected = reference.row_losses(logits.double(), targets, PLAIN)
    torch.testing.assert_close(losses[[0, 2]].double(), expected[[0, 2]], rtol=1e-6, atol=1e-6)
    assert losses[1] == 0 and not made[1].any() and made[0, 4] == 0 and made.isfinite().all()


@pytest.mark.parametrize("terms", [PLAIN, CAP], ids=["plain", "cap"])
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("classes", [13, 4200])
def test_statistics_and_gradient_equal_the_row_passes_of_the_cpu(
    terms: LossTerms, mean: bool, entropy: bool, classes: int
) -> None:
    logits = draw(4, classes, scale=2.0)
    targets = torch.tensor([0, -1, classes - 1, 5])
    found = kernel.statistics(logits, targets, terms, mean, entropy)
    usual = rows.statistics(logits, targets, terms, mean, entropy)
    exact = rows.statistics(logits.double(), targets, terms, mean, entropy)
    for mine, theirs, right in zip(found, usual, exact, strict=True):
        assert_close_as_torch(mine, theirs, right)
    upstream = Statistics(*torch.randn(4, 4))
    mine, theirs, right = logits.clone(), logits.clone(), logits.double()
    kernel.gradient_(mine, targets, found, upstream, terms, mean, entropy)
    rows.gradient_(theirs, targets, usual, upstream, terms, mean, entropy)
    rows.gradient_(right, targets, exact, Statistics(*(x.double() for x in upstream)), terms, mean, entropy)
    assert_close_as_torch(mine, theirs, right, factor=3.0)


@pytest.mark.parametrize("head", ["lower", "-inf"])
@pytest.mark.parametrize("entropy", [False, True])
def test_the_maximum_is_in_the_last_block(head: str, entropy: bool) -> None:
    logits = torch.linspace(-3, 4, 4200).repeat(2, 1)
    if head == "-inf":
        logits[:, :4100] = float("-inf")
    targets = torch.tensor([4199, 4150])
    found = kernel.statistics(logits, targets, PLAIN, False, entropy)
    exact = rows.statistics(logits.double(), targets, PLAIN, False, entropy)
    for mine, right in zip(found, exact, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-5, atol=1e-6)


def test_a_target_outside_the_classes_shows() -> None:
    logits = draw(3, 9)
    losses = kernel.loss_and_gradient_(logits, torch.tensor([0, 9, 8]), torch.tensor(1.0), PLAIN)
    assert losses.isnan().tolist() == [False, True, False]


def test_the_same_bits_each_time() -> None:
    logits, targets = draw(5, 300), torch.tensor([0, 5, -1, 299, 7])
    made = []
    for _ in range(2):
        again = logits.clone()
        losses = kernel.loss_and_gradient_(again, targets, torch.tensor(0.5), ALL)
        made.append((losses, again))
    assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[0][1], made[1][1])
