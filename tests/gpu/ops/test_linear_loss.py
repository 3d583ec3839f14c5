"""The linear losses on the GPU itself: types, chunks, rows that are dropped, no wait of the host, 2^31 logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from ops.linear_loss.plain import ALL_TERMS, SCALED, contrast, mean_loss, row_losses, row_statistics, some_targets
from ops.passes import assert_passes, draw

from aitrain.ops.linear_loss.measure import linear_predictions
from aitrain.ops.linear_loss.op import info_nce, linear_cross_entropy, linear_logprobs

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
LIMIT = 2**31
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1000, 65, 1003), (1, 1, 2), (0, 8, 40), (700, 128, 9001)]
"""Rows, width, classes; a chunk of 1 byte is 256 rows."""


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    """Make every tensor there, multiply float32 in float32, and leave no memory behind."""
    torch.set_default_device(CUDA)
    torch.manual_seed(0)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before
    torch.set_default_device(None)
    torch.cuda.empty_cache()


def given(rows: int, width: int, classes: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    weight = draw(classes, width, dtype=dtype, scale=2 * width**-0.5)
    return {"hidden": draw(rows, width, dtype=dtype), "weight": weight, "bias": draw(classes, dtype=dtype)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_loss_is_as_near_as_torch(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, _, classes = shape
    inputs, targets = given(*shape, dtype), some_targets(rows, classes)
    losses, measured = {"targets": targets, "terms": ALL_TERMS}, {"targets": targets, "terms": SCALED}
    counted = int((targets >= 0).sum())
    for bound in (None, counted, counted + 5):
        own = {"chunk_bytes": 1, "valid_rows": bound}
        mean = partial(linear_cross_entropy, **losses, **own)
        assert_passes(mean, partial(mean_loss, **losses), inputs, [torch.tensor(0.7)])
        each = partial(linear_cross_entropy, reduction="none", **losses, **own)
        assert_passes(each, partial(row_losses, **losses), inputs, [draw(rows)])
        said = partial(linear_logprobs, **measured, **own)
        assert_passes(said, partial(row_statistics, **measured), inputs, [draw(rows), draw(rows), draw(rows)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce(dtype: torch.dtype, symmetric: bool) -> None:
    queries, keys = (F.normalize(draw(900, 64), dim=1).to(dtype) for _ in range(2))
    inputs = {"queries": queries, "keys": keys, "scale": torch.tensor(20.0)}
    ours = partial(info_nce, symmetric=symmetric, chunk_bytes=1)
    assert_passes(ours, partial(contrast, symmetric=symmetric), inputs, [torch.tensor(0.7)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    inputs, targets = given(700, 64, 1003, torch.float32), some_targets(700, 1003)

    def under(function: Callable[..., torch.Tensor], **tensors: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype):
            return function(**tensors, targets=targets)

    ours = partial(under, partial(linear_cross_entropy, chunk_bytes=1))
    assert_passes(ours, partial(under, mean_loss), inputs, [torch.tensor(0.7)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_predictions(dtype: torch.dtype) -> None:
    inputs, targets = given(1000, 64, 1003, dtype), some_targets(1000, 1003)
    losses, best = linear_predictions(**inputs, targets=targets, chunk_bytes=1)
    near = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]  # logits of 8 are rounded by 2^-5
    torch.testing.assert_close(losses, row_losses(**inputs, targets=targets).float(), rtol=near, atol=near)
    logits = F.linear(*inputs.values()).float()
    taken = logits.gather(1, best.clamp(min=0)[:, None])[:, 0]
    assert torch.equal(best < 0, targets < 0)
    assert (taken >= logits.amax(1) - near)[targets >= 0].all()


@pytest.mark.parametrize("bound", [True, False])
def test_the_same_bits_each_time(bound: bool) -> None:
    inputs, targets = given(1000, 64, 1003, torch.bfloat16), some_targets(1000, 1003)
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    fixed = {"chunk_bytes": 1, "valid_rows": int((targets >= 0).sum()) if bound else None}
    made = []
    for _ in range(3):
        loss = linear_cross_entropy(**inputs, targets=targets, **fixed)
        said = linear_logprobs(**inputs, targets=targets, **fixed)
        total = loss + said.logprobs.sum() + said.entropy.sum()
        made.append([total.detach(), *torch.autograd.grad(total, leaves)])
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))


def test_small_parts_are_not_lost_in_a_large_sum() -> None:
    """As in tests/ops/linear_loss/test_chunks.py, here with a product that adds 16 bits to 32."""
    rows = 256 * 640
    hidden, targets = torch.full((rows, 8), 1 / 16, dtype=torch.bfloat16), torch.zeros(rows, dtype=torch.int64)
    weight = torch.zeros(8, 8, dtype=torch.bfloat16, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, targets, reduction="sum", chunk_bytes=1)
    (slope,) = torch.autograd.grad(loss, weight)
    assert slope[1:].eq(640 * 256 / 16 / 8).all() and slope[0].eq(-640 * 256 / 16 * 7 / 8).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_that_are_ignored_may_hold_anything_when_their_number_is_known(reduction: str) -> None:
    targets = some_targets(1000, 1003)
    inputs = given(1000, 64, 1003, torch.bfloat16)
    inputs["hidden"][targets < 0] = float("nan")
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    counted = int((targets >= 0).sum())
    loss = linear_cross_entropy(**inputs, targets=targets, reduction=reduction, valid_rows=counted).sum()
    assert all(found.isfinite().all() for found in (loss, *torch.autograd.grad(loss, leaves)))
    assert linear_cross_entropy(**inputs, targets=targets, valid_rows=counted - 1).isnan()


@pytest.mark.parametrize("items", [None, 512, 512.0, "tensor"])
def test_the_host_never_waits(items: int | float | str | None) -> None:
    inputs, targets = given(1000, 64, 1003, torch.bfloat16), some_targets(1000, 1003)
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    counted, one = int((targets >= 0).sum()), torch.tensor(1.0)
    number = torch.tensor(512) if items == "tensor" else items

    def step() -> None:
        for bound in (None, counted):
            own = {"targets": targets, "chunk_bytes": 1, "valid_rows": bound}
            loss = linear_cross_entropy(**inputs, reduction="sum", num_items=number, **own)  # type: ignore[arg-type]
            torch.autograd.grad(loss, leaves, one)
            torch.autograd.grad(linear_cross_entropy(**inputs, **own), leaves, one)
            said = linear_logprobs(**inputs, **own)
            torch.autograd.grad(said.logprobs, leaves, torch.ones_like(said.logprobs))
            linear_predictions(**inputs, **own)

    step()  # kernels are compiled and loaded, libraries get their memory: that waits
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_whole() -> None:
    torch._dynamo.reset()
    inputs, targets = given(700, 64, 1003, torch.float16), some_targets(700, 1003)
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]

    def function(**tensors: torch.Tensor) -> torch.Tensor:
        said = linear_logprobs(**tensors, targets=targets, chunk_bytes=1)
        return linear_cross_entropy(**tensors, targets=targets, chunk_bytes=1) + said.entropy.mean()

    made = []
    for run in (torch.compile(function, fullgraph=True, backend="aot_eager"), function):
        out = run(**inputs)
        made.append([out.detach(), *torch.autograd.grad(out, leaves)])
    for mine, right in zip(*made, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-2, atol=1e-4)


def test_a_step_needs_a_fraction_of_the_memory() -> None:
    """8192 rows of 32000 classes: 500 MiB of logits, which eager holds at least three times."""
    rows, width, classes, budget = 8192, 256, 32000, 64 << 20
    hidden, weight = draw(rows, width, dtype=torch.bfloat16), draw(classes, width, dtype=torch.bfloat16, scale=0.1)
    targets = torch.randint(classes, (rows,))

    def peak(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> int:
        leaves = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        loss(*leaves).backward()  # libraries get their memory
        for leaf in leaves:
            leaf.grad = None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss(*leaves).backward()
        return torch.cuda.max_memory_allocated() - before

    eager = peak(lambda h, w: F.cross_entropy(F.linear(h, w).float(), targets))
    ours = peak(lambda h, w: linear_cross_entropy(h, w, targets, chunk_bytes=budget))
    gradients = classes * width * (4 + 2) + rows * width * 2
    assert ours <= budget + gradients + (16 << 20)
    assert eager >= 3 * rows * classes * 2 and ours <= eager / 8


@pytest.mark.parametrize("chunk_bytes", [1 << 33, None], ids=["one chunk", "chunks of the device"])
def test_more_than_2_to_the_31_logits(chunk_bytes: int | None) -> None:
    """In one chunk, so that an offset of 32 bits would write somewhere else."""
    free = torch.cuda.mem_get_info()[0]
    if free < 40e9:
        pytest.skip(f"needs 40 GB of free GPU memory, there are {free / 1e9:.0f}")
    rows, width, classes, some = 17_000, 64, 128_256, 64
    about = LIMIT // classes
    assert rows * classes > LIMIT and about + some < rows
    hidden = draw(rows, width, dtype=torch.bfloat16).requires_grad_()
    weight = draw(classes, width, dtype=torch.bfloat16, scale=0.25).requires_grad_()
    targets = torch.randint(classes, (rows,))
    targets[-1], targets[about] = classes - 1, -100
    upstream = torch.rand(rows)
    loss = linear_cross_entropy(hidden, weight, targets, reduction="sum", chunk_bytes=chunk_bytes)
    said = linear_logprobs(hidden, weight, targets, chunk_bytes=chunk_bytes)
    found = torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(said.logprobs, (hidden, weight), upstream)
    wide = weight.detach().double().requires_grad_()
    right: list[list[torch.Tensor]] = [[], []]
    logprobs = []
    for first in range(0, rows, 500):
        part, aims = hidden.detach()[first : first + 500].double().requires_grad_(), targets[first : first + 500]
        losses = F.cross_entropy(F.linear(part, wide), aims, reduction="none")
        logprobs.append(-losses.detach())
        for sums, factor in zip(right, (torch.ones(rows), -upstream), strict=True):
            factors = factor[first : first + 500].double()
            for_part, for_wide = torch.autograd.grad(losses, (part, wide), factors, retain_graph=True)
            sums.append(for_part)
            if first:
                sums[0].add_(for_wide)
            else:
                sums.insert(0, for_wide)
    exact = torch.cat(logprobs)
    assert_near(loss, -exact.sum())
    assert_near(said.logprobs, exact)
    chosen = torch.tensor([*range(some), *range(about - some, about + some), *range(rows - some, rows)])
    for (for_hidden, for_weight), (sum_weight, *parts) in zip(found, right, strict=True):
        assert_near(for_hidden[chosen], torch.cat(parts)[chosen])
        assert_near(for_hidden, torch.cat(parts))
        assert_near(for_weight, sum_weight)


def assert_near(found: torch.Tensor, exact: torch.Tensor) -> None:
    error = (found.double() - exact.double()).norm() / exact.double().norm()
    assert float(error) < 1e-2, "bf16 rounds by at most 2^-9: the logits, their gradient, and the result"
