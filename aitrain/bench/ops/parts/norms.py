"""RMSNorm with and without residual, and LayerNorm: ours, torch, Liger, Quack, and plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from aitrain.bench.ops.case import Case, Function, Inputs, Outputs, Provider, Work, exact_by_autograd, plain, tuned

EPS = 1e-6
WIDTHS = (4096, 1024, 2880, 8192, 16384)
SMALL_SHAPES = ((512, 1024),)


def cases(small: bool) -> Iterator[Case]:
    """Yield the cases, headline shapes first.

    Args:
        small: Shapes for a CPU.
    """
    first = SMALL_SHAPES[0] if small else (8192, 4096)
    yield _rms_norm(first, residual=True, headline=True, element=4 if small else 2)
    yield _rms_norm(first, residual=False, headline=True, element=4 if small else 2)
    yield _layer_norm(first, element=4 if small else 2)
    if not small:
        for shape in ((rows, width) for rows in (4096, 16384) for width in WIDTHS):
            yield _rms_norm(shape, residual=True)
            yield _rms_norm(shape, residual=False)
        for shape in ((rows, width) for rows in (4096, 16384) for width in WIDTHS[:2]):
            yield _layer_norm(shape)


def _rms_norm(shape: tuple[int, int], residual: bool, headline: bool = False, element: int = 2) -> Case:
    formula = partial(_rms_formula, residual=residual)
    leaves = ("x", "residual", "weight") if residual else ("x", "weight")
    upstream = ("above", "above_sum") if residual else ("above",)
    return Case(
        op="rms_norm with residual" if residual else "rms_norm",
        shape=f"{shape[0]}x{shape[1]}",
        inputs=partial(_inputs, shape),
        exact=exact_by_autograd(formula, leaves, upstream),
        providers=[*_rms_providers(formula, residual), *([tuned(formula)] if headline else [])],
        work=_work(shape[0] * shape[1] * element, (4, 4) if residual else (2, 3)),
        leaves=leaves,
        upstream=upstream,
    )


def _layer_norm(shape: tuple[int, int], element: int = 2) -> Case:
    leaves = ("x", "weight", "bias")
    return Case(
        op="layer_norm",
        shape=f"{shape[0]}x{shape[1]}",
        inputs=partial(_inputs, shape),
        exact=exact_by_autograd(_layer_formula, leaves, ("above",)),
        providers=[
            Provider("ours", _our_layer_norm),
            *plain(_layer_formula),
            Provider("Liger (Triton)", _liger_layer_norm, "liger-kernel", overwrites=("above",)),
        ],
        work=_work(shape[0] * shape[1] * element, (2, 3)),
        leaves=leaves,
        upstream=("above",),
    )


def _work(size: int, tensors: tuple[int, int]) -> dict[str, Work]:
    """Return the bytes to move when forward and backward touch so many tensors of this size."""
    forward, backward = tensors
    return {
        "forward": Work(bytes=forward * size),
        "backward": Work(bytes=backward * size),
        "both": Work(bytes=(forward + backward) * size),
    }


def _inputs(shape: tuple[int, int], device: torch.device) -> Inputs:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    wide = {name: torch.randn(shape, device=device, dtype=dtype) for name in ("x", "residual", "above", "above_sum")}
    weight = 1 + 0.1 * torch.randn(shape[1], device=device, dtype=dtype)
    return {**wide, "weight": weight, "bias": 0.1 * torch.randn(shape[1], device=device, dtype=dtype)}


def _rms_formula(inputs: Inputs, residual: bool) -> Outputs:
    """RMSNorm as the models of transformers write it."""
    x = inputs["x"] + inputs["residual"] if residual else inputs["x"]
    wide = x if x.dtype == torch.float64 else x.float()
    y = inputs["weight"] * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype)
    return (y, x) if residual else (y,)


def _layer_formula(inputs: Inputs) -> Outputs:
    x = inputs["x"]
    return (F.layer_norm(x, x.shape[-1:], inputs["weight"], inputs["bias"], EPS),)


def _rms_providers(formula: Function, residual: bool) -> list[Provider]:
    spoiled = ("above", "above_sum") if residual else ("above",)
    return [
        Provider("ours", partial(_our_rms_norm, residual)),
        *plain(formula),
        Provider("torch rms_norm", partial(_torch_rms_norm, residual)),
        Provider("Liger (Triton)", partial(_liger_rms_norm, residual), "liger-kernel", overwrites=spoiled),
        Provider("Quack", partial(_quack_rms_norm, residual), "quack-kernels"),
    ]


def _our_rms_norm(residual: bool) -> Function:
    from aitrain.ops.rms_norm.op import rms_norm

    if residual:
        return lambda inputs: rms_norm(inputs["x"], inputs["weight"], EPS, residual=inputs["residual"])
    return lambda inputs: (rms_norm(inputs["x"], inputs["weight"], EPS),)


def _torch_rms_norm(residual: bool) -> Function:
    def run(inputs: Inputs) -> Outputs:
        x = inputs["x"] + inputs["residual"] if residual else inputs["x"]
        y = F.rms_norm(x, x.shape[-1:], inputs["weight"], EPS)
        return (y, x) if residual else (y,)

    return run


def _liger_rms_norm(residual: bool) -> Function:
    if residual:
        from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction as Added

        return lambda inputs: Added.apply(inputs["x"], inputs["residual"], inputs["weight"], EPS, 0.0, "llama", True)
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction as Alone

    return lambda inputs: (Alone.apply(inputs["x"], inputs["weight"], EPS, 0.0, "llama", True),)


def _quack_rms_norm(residual: bool) -> Function:
    from quack import rmsnorm

    if residual:
        return lambda inputs: rmsnorm(inputs["x"], inputs["weight"], residual=inputs["residual"], eps=EPS, prenorm=True)
    return lambda inputs: (rmsnorm(inputs["x"], inputs["weight"], eps=EPS),)


def _our_layer_norm() -> Function:
    from aitrain.ops.layer_norm.op import layer_norm

    return lambda inputs: (layer_norm(inputs["x"], inputs["weight"], inputs["bias"], EPS),)


def _liger_layer_norm() -> Function:
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction as Fused

    return lambda inputs: (Fused.apply(inputs["x"], inputs["weight"], inputs["bias"], EPS),)
