"""The loss of a linear head, without ever storing all logits: ours, Liger, CCE, Quack, and plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from aitrain.bench.ops.case import Case, Function, Inputs, Outputs, Provider, Work, plain

ROWS_AT_ONCE = 1024
IGNORED = -100

SHAPES = ((8192, 4096, 128256), (4096, 4096, 128256), (8192, 1024, 151936), (8192, 640, 262144), (16384, 2048, 248320))
"""Tokens, width, vocabulary: Llama 3 8B (twice), Qwen3 0.6B, Gemma 3 270M, Qwen3.5 2B."""

SMALL_SHAPES = ((1024, 256, 32000),)


def cases(small: bool) -> Iterator[Case]:
    """Yield the cases, headline shapes first.

    Args:
        small: Shapes for a CPU.
    """
    first, *others = SMALL_SHAPES if small else SHAPES
    yield _case(first, modes=("both", "forward"))
    yield _case(first, ignored=0.5)
    yield _case(first, frozen=True)
    for shape in others:
        yield _case(shape)


def _case(
    shape: tuple[int, int, int], ignored: float = 0.0, frozen: bool = False, modes: tuple[str, ...] = ("both",)
) -> Case:
    rows, width, vocabulary = shape
    counted = rows - int(ignored * rows)
    product = 2.0 * counted * width * vocabulary
    work = {"forward": Work(flops=product), "both": Work(flops=product * (2 if frozen else 3))}
    words = [f"{rows}x{width}x{vocabulary}"]
    words += [f"{ignored:.0%} ignored"] if ignored else []
    words += ["frozen head"] if frozen else []
    return Case(
        op="linear_cross_entropy",
        shape=", ".join(words),
        inputs=partial(_inputs, shape, rows - counted),
        exact=partial(_exact, frozen=frozen),
        providers=_providers(),
        work={mode: work[mode] for mode in modes},
        leaves=("hidden",) if frozen else ("hidden", "weight"),
    )


def _inputs(shape: tuple[int, int, int], ignored: int, device: torch.device) -> Inputs:
    rows, width, vocabulary = shape
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    targets = torch.randint(vocabulary, (rows,), device=device)
    targets[torch.randperm(rows, device=device)[:ignored]] = IGNORED
    hidden = torch.randn(rows, width, device=device, dtype=dtype)
    weight = torch.randn(vocabulary, width, device=device, dtype=dtype) * (2 * width**-0.5)  # logits of +-2
    return {"hidden": hidden, "weight": weight, "targets": targets}


def _exact(inputs: Inputs, frozen: bool) -> Outputs:
    """Return mean loss and gradients in float64, a thousand rows at a time."""
    hidden, targets = inputs["hidden"], inputs["targets"]
    weight = inputs["weight"].double()
    counted = (targets != IGNORED).sum().clamp(min=1)
    loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
    for_hidden = torch.empty(hidden.shape, dtype=torch.float64, device=hidden.device)
    for_weight = torch.zeros_like(weight)
    for begin in range(0, len(hidden), ROWS_AT_ONCE):
        rows = slice(begin, begin + ROWS_AT_ONCE)
        x, y = hidden[rows].double(), targets[rows]
        inside = (y != IGNORED).double()
        y = y.clamp(min=0)[:, None]
        logits = x @ weight.T
        loss += (inside * (logits.logsumexp(1) - logits.gather(1, y)[:, 0])).sum() / counted
        slope = logits.softmax(1).scatter_add_(1, y, -torch.ones_like(y, dtype=torch.float64))
        slope *= (inside / counted)[:, None]
        for_hidden[rows] = slope @ weight
        for_weight.addmm_(slope.T, x)
    return (loss, for_hidden) if frozen else (loss, for_hidden, for_weight)


def _plainly(inputs: Inputs) -> Outputs:
    logits = F.linear(inputs["hidden"], inputs["weight"])
    return (F.cross_entropy(logits.float(), inputs["targets"], ignore_index=IGNORED),)


def _providers() -> list[Provider]:
    return [
        Provider("ours", _ours),
        *plain(_plainly),
        Provider("Liger (Triton)", _liger, "liger-kernel"),
        Provider("Liger (CuTe)", _liger_cute, "liger-kernel"),
        Provider("CCE", partial(_cce, "high"), "cut-cross-entropy"),
        Provider("CCE, exact", partial(_cce, None), "cut-cross-entropy"),
        Provider("Quack", _quack, "quack-kernels"),
        Provider("torch chunked", _torch),
    ]


def _ours() -> Function:
    from aitrain.ops.linear_loss.op import linear_cross_entropy

    return lambda inputs: (linear_cross_entropy(inputs["hidden"], inputs["weight"], inputs["targets"]),)


def _liger() -> Function:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Fused

    return lambda inputs: Fused.apply(inputs["hidden"], inputs["weight"], inputs["targets"])[:1]


def _liger_cute() -> Function:
    from liger_kernel.ops.cutedsl.ops.fused_linear_cross_entropy_sm90 import (
        LigerFusedLinearCrossEntropySM90Function as Fused,
    )

    def run(inputs: Inputs) -> Outputs:
        loss = Fused.apply(inputs["hidden"], inputs["weight"], inputs["targets"])
        return (loss[0] if isinstance(loss, tuple) else loss,)

    return run


def _cce(filter_eps: str | None) -> Function:
    from cut_cross_entropy import linear_cross_entropy

    def run(inputs: Inputs) -> Outputs:
        return (linear_cross_entropy(inputs["hidden"], inputs["weight"], inputs["targets"], filter_eps=filter_eps),)

    return run


def _quack() -> Function:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return lambda inputs: (chunked_linear_cross_entropy(inputs["hidden"], inputs["weight"], inputs["targets"]),)


def _torch() -> Function:
    fused = getattr(F, "linear_cross_entropy", None)
    if fused is None:
        raise ImportError(f"torch {torch.__version__} has no linear_cross_entropy")
    return lambda inputs: (fused(inputs["hidden"], inputs["weight"], inputs["targets"]),)
