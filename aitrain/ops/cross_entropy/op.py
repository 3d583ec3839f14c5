"""Cross entropy of logits that exist already: loss and gradient in one pass over them."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from aitrain.errors import ShapeError
from aitrain.ops.cross_entropy.dispatch import row_passes, times_upstream_
from aitrain.ops.cross_entropy.rows import Statistics, losses_of, targets_of
from aitrain.ops.cross_entropy.terms import LossTerms
from aitrain.ops.registration import register

REDUCTIONS = ("sum", "mean", "none")


def cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    terms: LossTerms | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    num_items: torch.Tensor | float | None = None,
    inplace: bool = False,
) -> torch.Tensor:
    """Return the cross entropy of logits, accumulated in float32 whatever their type.

    Args:
        logits: `(..., V)`.
        targets: int64 `(...)`, classes 0 to V - 1 or `ignore_index`.
        terms: Label smoothing, z-loss, soft-cap, logit scale; None = plain cross entropy.
        ignore_index: Target of a row without loss.
        reduction: `sum`, `mean` (over the rows that count; 0 when there are none), or `none`.
        num_items: With `sum`: what the sum is divided by; may be 0 when no row counts, and the loss is 0 then.
        inplace: Put the gradient where the logits are, which are lost by that; not with `none`. Autograd raises when
            something else needs them, and on a second backward pass.

    Returns:
        Scalar, or the shape of `targets` with `none`; float32, or float64 of float64 logits. A target outside the
        classes makes it NaN on a GPU.

    Raises:
        ShapeError: Shapes or types do not fit, or (on the CPU) a target is no class.
    """
    _check(logits, targets, reduction, num_items, inplace)
    terms = terms or LossTerms()
    rows, labels = logits.reshape(-1, logits.shape[-1]), targets_of(targets.reshape(-1), ignore_index, logits.shape[-1])
    if reduction == "none":
        return _each(rows, labels, terms).view(targets.shape)
    wide = torch.promote_types(logits.dtype, torch.float32)
    items = (labels >= 0).sum().clamp(min=1) if reduction == "mean" else 1.0 if num_items is None else num_items
    scale = torch.as_tensor(items, device=logits.device, dtype=wide).reshape(()).reciprocal()
    differentiable = torch.is_grad_enabled() and rows.requires_grad
    if num_items is not None and (not differentiable or logits.dtype == torch.float16):
        # no rows and no items: here the 0 of an ignored row meets 1 / 0, which elsewhere it never does
        scale = torch.where((labels >= 0).any(), scale, 0.0)
    if not differentiable:
        return (_each(rows, labels, terms) * scale).sum()
    if logits.dtype == torch.float16:
        # one of many rows has a gradient that vanishes in a half until the loss scale of mixed precision lifts it:
        # autograd brings both factors together before they reach it
        return scale * _summed(rows, labels, torch.ones_like(scale), terms, inplace)
    return _summed(rows, labels, scale, terms, inplace)


def _check(
    logits: torch.Tensor,
    targets: torch.Tensor,
    reduction: str,
    num_items: torch.Tensor | float | None,
    inplace: bool,
) -> None:
    if reduction not in REDUCTIONS:
        raise ShapeError(f"reduction={reduction} is unknown: write sum, mean or none")
    if num_items is not None and reduction != "sum":
        raise ShapeError(f"num_items needs reduction=sum, not {reduction}")
    if isinstance(num_items, torch.Tensor) and num_items.numel() != 1:
        raise ShapeError(f"num_items must be one number, not a tensor {tuple(num_items.shape)}")
    if inplace and reduction == "none":
        raise ShapeError("inplace=True needs a summed loss, not reduction=none")
    if not logits.dim() or not logits.shape[-1]:
        raise ShapeError(f"logits {tuple(logits.shape)} have no classes")
    if targets.shape != logits.shape[:-1] or targets.dtype != torch.int64 or not logits.is_floating_point():
        raise ShapeError(
            f"targets must be int64 {tuple(logits.shape[:-1])}, one per row of floating-point logits "
            f"{tuple(logits.shape)}, not {targets.dtype} {tuple(targets.shape)}"
        )


def _summed(
    rows: torch.Tensor, labels: torch.Tensor, scale: torch.Tensor, terms: LossTerms, inplace: bool
) -> torch.Tensor:
    if not torch.compiler.is_compiling() and type(rows) is torch.Tensor:  # fake tensors have nothing to launch on
        return _Summed.apply(rows, labels, scale, terms, inplace)
    numbers = [terms.logit_scale, terms.softcap, terms.label_smoothing, terms.z_loss]
    out: torch.Tensor = _summed_op(rows, labels, scale, numbers)[0]  # the compiler decides itself what shares memory
    return out


def _each(rows: torch.Tensor, labels: torch.Tensor, terms: LossTerms) -> torch.Tensor:
    """Return the loss of each row, from statistics that are differentiable."""
    numbers = [terms.logit_scale, terms.softcap]
    return losses_of(Statistics(*_statistics_op(rows, labels, numbers, terms.label_smoothing != 0.0, False)), terms)


class _Summed(torch.autograd.Function):
    """`scale * sum(losses)`; the gradient is made in the forward pass, in a buffer of its own or in the logits'."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor, terms: LossTerms, inplace: bool
    ) -> torch.Tensor:
        ctx.terms, ctx.inplace = terms, inplace
        ctx.save_for_backward(*(() if inplace else (logits, targets, scale)))
        losses, ctx.gradient = _loss(logits, targets, scale, terms, inplace)
        if inplace:
            torch.autograd.graph.increment_version(logits)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            if ctx.inplace:
                raise RuntimeError("cross_entropy(inplace=True) has no second backward pass: its logits are gone")
            logits, targets, scale = ctx.saved_tensors
            gradient = _loss(logits, targets, scale, ctx.terms, False)[1]
        return times_upstream_(gradient, upstream), None, None, None, None


def _loss(
    logits: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor, terms: LossTerms, inplace: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    source = logits if logits.stride(-1) == 1 and logits.stride(0) >= logits.shape[1] else logits.contiguous()
    out = source if inplace and source is logits else torch.empty_like(source, memory_format=torch.contiguous_format)
    return row_passes(logits).loss_and_gradient_(source, targets, scale, terms, out=None if out is source else out), out


def _run_summed(
    logits: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor, terms: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    losses, gradient = _loss(logits, targets, scale, LossTerms(*terms), inplace=False)
    return losses.sum(), gradient


def _fake_summed(
    logits: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor, terms: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty((), dtype=wide), torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup_summed(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(output[1])


def _backward_summed(ctx: Any, upstream: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
    (gradient,) = ctx.saved_tensors
    return gradient * upstream, None, None, None


def _run_statistics(
    logits: torch.Tensor, targets: torch.Tensor, terms: list[float], mean: bool, entropy: bool
) -> tuple[torch.Tensor, ...]:
    rows = logits if logits.stride(-1) == 1 else logits.contiguous()
    # rows of one tensor would share its memory, which an op's outputs must not
    return tuple(x.clone() for x in row_passes(logits).statistics(rows, targets, LossTerms(*terms), mean, entropy))


def _fake_statistics(
    logits: torch.Tensor, targets: torch.Tensor, terms: list[float], mean: bool, entropy: bool
) -> tuple[torch.Tensor, ...]:
    wide = torch.promote_types(logits.dtype, torch.float32)
    return tuple(logits.new_empty(len(logits), dtype=wide) for _ in range(4))


def _setup_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    logits, targets, *ctx.options = inputs
    ctx.save_for_backward(logits, targets, *output)


def _backward_statistics(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
    return _gradient_op(*ctx.saved_tensors, *upstream, *ctx.options), None, None, None, None


def _run_gradient(logits: torch.Tensor, targets: torch.Tensor, *rest: Any) -> torch.Tensor:
    saved, upstream = Statistics(*rest[:4]), Statistics(*(x.contiguous() for x in rest[4:8]))
    terms, mean, entropy = rest[8:]
    gradient = logits.clone(memory_format=torch.contiguous_format)
    row_passes(logits).gradient_(gradient, targets, saved, upstream, LossTerms(*terms), mean, entropy)
    return gradient


def _fake_gradient(logits: torch.Tensor, targets: torch.Tensor, *rest: Any) -> torch.Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


_summed_op = register(
    "cross_entropy(Tensor logits, Tensor targets, Tensor scale, float[] terms) -> (Tensor, Tensor)",
    _run_summed,
    _fake_summed,
    _backward_summed,
    _setup_summed,
)
_gradient_op = register(
    "row_statistics_backward(Tensor logits, Tensor targets, Tensor lse, Tensor picked, Tensor mean, Tensor entropy, "
    "Tensor to_lse, Tensor to_picked, Tensor to_mean, Tensor to_entropy, float[] terms, bool with_mean, "
    "bool with_entropy) -> Tensor",
    _run_gradient,
    _fake_gradient,
)
_statistics_op = register(
    "row_statistics(Tensor logits, Tensor targets, float[] terms, bool with_mean, bool with_entropy) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _run_statistics,
    _fake_statistics,
    _backward_statistics,
    _setup_statistics,
)
