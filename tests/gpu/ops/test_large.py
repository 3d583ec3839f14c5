"""Tensors of more than 2^31 elements: an offset of 32 bits would write somewhere else, or nowhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

pytestmark = pytest.mark.gpu
LIMIT = 2**31
CUDA = torch.device("cuda")
SOME = 64
"""Rows that are compared: the first, the last, and those about the 2^31st element."""


@pytest.fixture(autouse=True)
def room() -> Iterator[None]:
    """Skip where the memory is too small, and leave none behind."""
    free = torch.cuda.mem_get_info()[0]
    if free < 70e9:
        pytest.skip(f"needs 70 GB of free GPU memory, there are {free / 1e9:.0f}")
    torch.manual_seed(0)
    yield
    torch.cuda.empty_cache()


def wide_normal(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device=CUDA).normal_()


def rows_to_compare(rows: int, width: int) -> torch.Tensor:
    about = LIMIT // width
    assert rows * width > LIMIT and about + SOME < rows
    ranges = (range(SOME), range(about - SOME, about + SOME), range(rows - SOME, rows))
    return torch.tensor([row for part in ranges for row in part], device=CUDA)


def assert_near(found: torch.Tensor, exact: torch.Tensor) -> None:
    error = (found.double() - exact.double()).norm() / exact.double().norm()
    assert float(error) < 1e-2, "bf16 rounds by at most 2^-9, twice"


def test_rms_norm() -> None:
    from aitrain.ops.rms_norm.op import rms_norm

    rows, width = 600_000, 4096
    x, above = wide_normal(rows, width), wide_normal(rows, width)
    weight = torch.randn(width, dtype=torch.bfloat16, device=CUDA)
    x.requires_grad_()
    weight.requires_grad_()
    y = rms_norm(x, weight, 1e-6)
    for_x, for_weight = torch.autograd.grad(y, (x, weight), above)
    chosen = rows_to_compare(rows, width)
    few = x.detach()[chosen].double().requires_grad_()
    exact = F.rms_norm(few, (width,), weight.detach().double(), 1e-6)
    assert_near(y[chosen], exact)
    assert_near(for_x[chosen], torch.autograd.grad(exact, few, above[chosen].double())[0])
    total = torch.zeros(width, dtype=torch.float64, device=CUDA)
    for part, over in zip(x.detach().split(50_000), above.split(50_000), strict=True):
        wide = part.double()
        total += (over.double() * wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + 1e-6)).sum(0)
    assert_near(for_weight, total)


def test_cross_entropy() -> None:
    from aitrain.ops.cross_entropy.op import cross_entropy

    rows, classes = 17_000, 128_256
    logits = wide_normal(rows, classes).requires_grad_()
    targets = torch.randint(classes, (rows,), device=CUDA)
    loss = cross_entropy(logits, targets, reduction="sum")
    (slope,) = torch.autograd.grad(loss, logits)
    chosen = rows_to_compare(rows, classes)
    few = logits.detach()[chosen].double().requires_grad_()
    exact = F.cross_entropy(few, targets[chosen], reduction="sum")
    assert_near(slope[chosen], torch.autograd.grad(exact, few)[0])
    pieces = zip(logits.detach().split(1000), targets.split(1000), strict=True)
    whole = sum(F.cross_entropy(part.double(), aim, reduction="sum") for part, aim in pieces)
    assert abs(float(loss) / float(whole) - 1) < 1e-4


def test_swiglu() -> None:
    from aitrain.ops.glu.op import swiglu

    rows, width = 150_000, 14_400
    gate, up, above = (wide_normal(rows, width) for _ in range(3))
    gate.requires_grad_()
    up.requires_grad_()
    y = swiglu(gate, up)
    slopes = torch.autograd.grad(y, (gate, up), above)
    chosen = rows_to_compare(rows, width)
    few = [part.detach()[chosen].double().requires_grad_() for part in (gate, up)]
    exact = F.silu(few[0]) * few[1]
    assert_near(y[chosen], exact)
    for found, expected in zip(slopes, torch.autograd.grad(exact, few, above[chosen].double()), strict=True):
        assert_near(found[chosen], expected)


def test_adamw() -> None:
    from aitrain.optim.fused_adamw import FusedAdamW

    count = LIMIT + 4096 * 5
    parameter = torch.nn.Parameter(torch.zeros(count, dtype=torch.bfloat16, device=CUDA))
    parameter.grad = wide_normal(count)
    FusedAdamW([parameter], lr=1e-3, weight_decay=0.0).step()
    for part, slope in zip(parameter.detach().split(2**28), parameter.grad.split(2**28), strict=True):
        assert_near(part, -1e-3 * slope.float().sign())
