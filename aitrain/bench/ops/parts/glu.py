"""SwiGLU and GeGLU: ours, Liger, and plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from aitrain.bench.ops.case import Case, Function, Inputs, Outputs, Provider, Work, exact_by_autograd, plain, tuned

SHAPES = ((8192, 14336), (8192, 8960), (8192, 28672))
SMALL_SHAPES = ((512, 2048),)
LEAVES = ("gate", "up")


def cases(small: bool) -> Iterator[Case]:
    """Yield the cases, headline shapes first.

    Args:
        small: Shapes for a CPU.
    """
    first, *others = SMALL_SHAPES if small else SHAPES
    yield _case("swiglu", first, small, headline=True)
    yield _case("geglu", first, small)
    for shape in others:
        yield _case("swiglu", shape, small)


def _case(op: str, shape: tuple[int, int], small: bool, headline: bool = False) -> Case:
    formula = _swiglu if op == "swiglu" else _geglu
    size = shape[0] * shape[1] * (4 if small else 2)
    return Case(
        op=op,
        shape=f"{shape[0]}x{shape[1]}",
        inputs=partial(_inputs, shape),
        exact=exact_by_autograd(formula, LEAVES, ("above",)),
        providers=[
            Provider("ours", partial(_ours, op)),
            *plain(formula),
            Provider("Liger (Triton)", partial(_liger, op), "liger-kernel", overwrites=LEAVES),
            *([tuned(formula)] if headline else []),
        ],
        work={"forward": Work(bytes=3 * size), "backward": Work(bytes=5 * size), "both": Work(bytes=8 * size)},
        leaves=LEAVES,
        upstream=("above",),
    )


def _inputs(shape: tuple[int, int], device: torch.device) -> Inputs:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {name: torch.randn(shape, device=device, dtype=dtype) for name in ("gate", "up", "above")}


def _swiglu(inputs: Inputs) -> Outputs:
    return (F.silu(inputs["gate"]) * inputs["up"],)


def _geglu(inputs: Inputs) -> Outputs:
    return (F.gelu(inputs["gate"], approximate="tanh") * inputs["up"],)


def _ours(op: str) -> Function:
    from aitrain.ops.glu.op import geglu, swiglu

    function = swiglu if op == "swiglu" else geglu
    return lambda inputs: (function(inputs["gate"], inputs["up"]),)


def _liger(op: str) -> Function:
    from liger_kernel.ops.geglu import LigerGELUMulFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    fused = LigerSiLUMulFunction if op == "swiglu" else LigerGELUMulFunction
    return lambda inputs: (fused.apply(inputs["gate"], inputs["up"]),)
