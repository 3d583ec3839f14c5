"""Cross entropy of given logits: ours, Liger, Quack, and plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from aitrain.bench.ops.case import Case, Function, Inputs, Outputs, Provider, Work, exact_by_autograd, plain, tuned

SHAPES = ((8192, 128256), (8192, 32000), (8192, 151936), (8192, 262144))
SMALL_SHAPES = ((512, 32000),)


def cases(small: bool) -> Iterator[Case]:
    """Yield the cases, headline shapes first.

    Args:
        small: Shapes for a CPU.
    """
    for number, (rows, classes) in enumerate(SMALL_SHAPES if small else SHAPES):
        size = rows * classes * (4 if small else 2)
        yield Case(
            op="cross_entropy",
            shape=f"{rows}x{classes}",
            inputs=partial(_inputs, rows, classes),
            exact=exact_by_autograd(_exactly, ("logits",), ()),
            providers=[*_providers(), *([tuned(_plainly)] if number == 0 else [])],
            work={"both": Work(bytes=2 * size), "forward": Work(bytes=size)},
            leaves=("logits",),
        )


def _inputs(rows: int, classes: int, device: torch.device) -> Inputs:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    logits = 2 * torch.randn(rows, classes, device=device, dtype=dtype)
    return {"logits": logits, "targets": torch.randint(classes, (rows,), device=device)}


def _exactly(inputs: Inputs) -> Outputs:
    return (F.cross_entropy(inputs["logits"], inputs["targets"]),)


def _plainly(inputs: Inputs) -> Outputs:
    return (F.cross_entropy(inputs["logits"].float(), inputs["targets"]),)


def _providers() -> list[Provider]:
    return [
        Provider("ours", partial(_ours, False)),
        Provider("ours, in place", partial(_ours, True), overwrites=("logits",)),
        *plain(_plainly),
        Provider("Liger (Triton)", _liger, "liger-kernel", overwrites=("logits",)),
        Provider("Quack", _quack, "quack-kernels"),
    ]


def _ours(inplace: bool) -> Function:
    from aitrain.ops.cross_entropy.op import cross_entropy

    return lambda inputs: (cross_entropy(inputs["logits"], inputs["targets"], inplace=inplace),)


def _liger() -> Function:
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction as Fused

    return lambda inputs: Fused.apply(inputs["logits"], inputs["targets"], None, -100, 0.0, 0.0, "mean")[:1]


def _quack() -> Function:
    from quack import cross_entropy

    return lambda inputs: (cross_entropy(inputs["logits"], inputs["targets"]),)
