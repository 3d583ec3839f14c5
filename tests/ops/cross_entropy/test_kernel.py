"""The Triton kernels, interpreted, against torch in the same type and in float64."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from aitrain.ops.cross_entropy import reference, rows
from aitrain.ops.cross_entropy.op import cross_entropy
from aitrain.ops.cross_entropy.rows import Statistics
from aitrain.ops.cross_entropy.terms import LossTerms
from ops.passes import assert_passes, draw
from ops.tolerance import assert_close_as_torch

pytest.importorskip("triton", reason="Triton is not installed")
kernel = importlib.import_module("aitrain.ops.cross_entropy.kernel")

PLAIN, SMOOTH, CAP = LossTerms(), LossTerms(label_smoothing=0.1), LossTerms(logit_scale=0.5, softcap=3.0)
ALL = LossTerms(logit_scale=2.0, softcap=5.0, label_smoothing=0.2, z_loss=0.05)
TERMS = pytest.mark.parametrize("terms", [PLAIN, SMOOTH, CAP, ALL], ids=["plain", "smoothing", "cap", "all"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITRAIN_OPS", "triton")
    torch.manual_seed(0)


BLOCK = kernel.BLOCK_BYTES // 4  # classes in one block of float32; of float16 there are twice as many


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
    ("count", "classes"),
    [(5, 37), (1, 1), (3, 2), (1, 130), (4, 2 * BLOCK + 8)],
    ids=["odd", "one", "two", "one row", "several blocks per row"],
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


@pytest.mark.parametrize("softcap", [5.0, 30.0, 50.0])
@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_caps_of_real_models(softcap: float, size: float) -> None:
    targets, terms = targets_for(5, 300), LossTerms(softcap=softcap)
    inputs = {"logits": draw(5, 300, scale=size)}
    ours = lambda logits: cross_entropy(logits, targets, terms=terms, reduction="none")  # noqa: E731
    assert_passes(ours, torchs(terms, targets), inputs, [torch.randn(5)])


@DTYPES
@pytest.mark.parametrize("layout", ["columns", "turned", "swapped", "expanded"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_layouts(layout: str, reduction: str, dtype: torch.dtype) -> None:
    targets = targets_for(6, 9).view(2, 3)
    inputs = {"logits": draw(2, 3, 9, layout=layout, dtype=dtype)}
    ours = lambda logits: cross_entropy(logits, targets, terms=ALL, reduction=reduction)  # noqa: E731

    def theirs(logits: torch.Tensor) -> torch.Tensor:
        losses = reference.row_losses(logits.reshape(6, 9), targets.flatten(), ALL)
        return losses.sum() if reduction == "sum" else losses.view(2, 3)

    assert_passes(ours, theirs, inputs, [torch.randn(2, 3) if reduction == "none" else torch.tensor(1.5)])


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_no_rows(reduction: str) -> None:
    logits = torch.empty(2, 0, 7, requires_grad=True)
    loss = cross_entropy(logits, torch.empty(2, 0, dtype=torch.int64), reduction=reduction)
    loss.sum().backward()
    assert loss.shape == ((2, 0) if reduction == "none" else ())
    assert loss.sum().item() == 0 and logits.grad is not None and logits.grad.shape == (2, 0, 7)


@pytest.mark.parametrize("terms", [PLAIN, ALL], ids=["plain", "all"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e4), (torch.float16, 6e4)])
def test_huge_logits(dtype: torch.dtype, size: float, reduction: str, terms: LossTerms) -> None:
    logits = torch.tensor([[size, -size, 0.0], [-size, -size, -size], [size, size, -size]], dtype=dtype)
    targets = torch.tensor([1, 2, 0])
    ours = lambda logits: cross_entropy(logits, targets, terms=terms, reduction=reduction)  # noqa: E731

    def theirs(logits: torch.Tensor) -> torch.Tensor:
        losses = reference.row_losses(logits, targets, terms)
        return losses.sum() if reduction == "sum" else losses

    assert_passes(ours, theirs, {"logits": logits}, [torch.ones(3) if reduction == "none" else torch.tensor(0.5)])


def test_rows_with_minus_infinity() -> None:
    logits = draw(3, 9)
    logits[0, 4], logits[1, :] = float("-inf"), float("-inf")
    targets = torch.tensor([2, -100, 8])
    made = logits.clone()
    losses = kernel.loss_and_gradient_(made, torch.tensor([2, -1, 8]), torch.tensor(1.0), PLAIN)
    expected = reference.row_losses(logits.double(), targets, PLAIN)
    torch.testing.assert_close(losses[[0, 2]].double(), expected[[0, 2]], rtol=1e-6, atol=1e-6)
    assert losses[1] == 0 and not made[1].any() and made[0, 4] == 0 and made.isfinite().all()


@DTYPES
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_row_that_is_not_finite_stays_alone(reduction: str, dtype: torch.dtype) -> None:
    nothing, impossible, unknown, sound, hidden = range(5)
    logits = draw(5, 7, dtype=dtype)
    logits[nothing], logits[impossible, 1], logits[unknown, 3] = float("-inf"), float("-inf"), float("nan")
    logits[hidden] = float("nan")
    targets = torch.tensor([0, 1, 2, 3, -100])
    ours, theirs = logits.clone().requires_grad_(), logits.float().requires_grad_()
    found = cross_entropy(ours, targets, reduction=reduction)
    right = F.cross_entropy(theirs, targets, reduction="none")
    if reduction == "none":
        torch.testing.assert_close(found, right, equal_nan=True)
        assert found[impossible] == float("inf") and found[nothing].isnan() and found[hidden] == 0
    (gradient,) = torch.autograd.grad(found.sum(), ours)
    (expected,) = torch.autograd.grad(right.sum(), theirs)
    # torch multiplies an ignored row of NaN by 0; the row has no loss, so its gradient is 0
    expected[hidden] = 0.0
    torch.testing.assert_close(gradient, expected.to(dtype), equal_nan=True)
    assert gradient.isnan().all(1).tolist() == [True, False, True, False, False]


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_whole_block_of_minus_infinity(place: str) -> None:
    logits = draw(2, 2 * BLOCK)
    logits[:, slice(0, BLOCK) if place == "first" else slice(BLOCK, None)] = float("-inf")
    targets = torch.tensor([BLOCK - 1, BLOCK]).flip(0 if place == "first" else ())
    exact = rows.statistics(logits.double(), targets, PLAIN, False)
    usual = rows.statistics(logits, targets, PLAIN, False)
    found = kernel.statistics(logits, targets, PLAIN, False)
    for name in ("lse", "entropy"):
        assert_close_as_torch(getattr(found, name), getattr(usual, name), getattr(exact, name))
    assert found.picked.isfinite().tolist() == [True, False]
    made, wanted = logits.clone(), logits.double()
    kernel.loss_and_gradient_(made, targets, torch.tensor(2.0), PLAIN)
    rows.loss_and_gradient_(wanted, targets, torch.tensor(2.0, dtype=torch.float64), PLAIN)
    torch.testing.assert_close(made.double(), wanted, rtol=1e-5, atol=1e-9)
    made, wanted, upstream = logits.clone(), logits.double(), Statistics(*torch.randn(4, 2))
    kernel.gradient_(made, targets, found, upstream, PLAIN, False)
    rows.gradient_(wanted, targets, exact, Statistics(*(x.double() for x in upstream)), PLAIN, False)
    torch.testing.assert_close(made.double(), wanted, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("terms", [PLAIN, CAP], ids=["plain", "cap"])
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("classes", [1, 13, BLOCK + 104])
def test_statistics_and_gradient_equal_the_row_passes_of_the_cpu(
    terms: LossTerms, mean: bool, entropy: bool, classes: int
) -> None:
    logits = draw(4, classes, scale=2.0)
    targets = torch.tensor([0, -1, classes - 1, 5 % classes])
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
    logits = torch.linspace(-3, 4, BLOCK + 104).repeat(2, 1)
    if head == "-inf":
        logits[:, : BLOCK + 4] = float("-inf")
    targets = torch.tensor([BLOCK + 103, BLOCK + 54])
    found = kernel.statistics(logits, targets, PLAIN, False, entropy)
    exact = rows.statistics(logits.double(), targets, PLAIN, False, entropy)
    for mine, right in zip(found, exact, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-5, atol=1e-6)


def test_a_target_outside_the_classes_shows() -> None:
    logits, targets = draw(3, 9), torch.tensor([0, 9, 8])
    found = kernel.statistics(logits, targets, PLAIN)
    assert found.picked.isnan().tolist() == [False, True, False]
    losses = kernel.loss_and_gradient_(logits, targets, torch.tensor(1.0), PLAIN)
    assert losses.isnan().tolist() == [False, True, False]
    assert logits.isnan().all(1).tolist() == [False, True, False] and logits[::2].isfinite().all()


def test_the_same_bits_each_time() -> None:
    logits, targets = draw(5, 300), torch.tensor([0, 5, -1, 299, 7])
    made = []
    for _ in range(2):
        again = logits.clone()
        losses = kernel.loss_and_gradient_(again, targets, torch.tensor(0.5), ALL)
        made.append((losses, again))
    assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[0][1], made[1][1])


def test_launchers_without_rows() -> None:
    logits, targets = torch.empty(0, 7), torch.empty(0, dtype=torch.int64)
    found = kernel.statistics(logits, targets, ALL)
    assert [x.shape for x in found] == [(0,)] * 4
    assert kernel.loss_and_gradient_(logits, targets, torch.tensor(1.0), ALL).shape == (0,)
    kernel.gradient_(logits, targets, found, found, ALL)


def test_a_buffer_of_its_own_leaves_the_logits_and_its_neighbours() -> None:
    logits, targets = draw(5, 33, layout="columns"), torch.tensor([0, 5, -1, 32, 7])
    before, wide = logits.clone(), torch.full((5, 80), 7.0)
    losses = kernel.loss_and_gradient_(logits, targets, torch.tensor(0.5), ALL, out=wide[:, 10:43])
    expected = before.clone()
    torch.testing.assert_close(losses, rows.loss_and_gradient_(expected, targets, torch.tensor(0.5), ALL))
    torch.testing.assert_close(wide[:, 10:43], expected)
    assert torch.equal(logits, before) and (wide[:, :10] == 7).all() and (wide[:, 43:] == 7).all()
