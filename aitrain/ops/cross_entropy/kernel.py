"""Triton kernels of the row passes: logits are read once from memory, and once from the cache to be overwritten."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from aitrain.ops.cross_entropy.rows import Statistics, zeros
from aitrain.ops.cross_entropy.terms import LossTerms
from aitrain.ops.launching import warps

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
BLOCK_BYTES = 65536
"""Of a row, held in registers at a time: most of a vocabulary's row goes through one program in two or three rounds."""

WARPS = 32
"""As many as a program may have: a multiprocessor is then busy with one row, whose second reading finds it cached."""


@triton.jit
def _capped(raw, logit_scale, softcap, CAPPED: tl.constexpr):
    z = raw.to(tl.float32) * logit_scale
    if CAPPED:
        # tanh(x) = 1 - 2 / (exp(2 x) + 1): exact at both ends, no overflow into NaN
        z = softcap * (1.0 - 2.0 / (tl.exp(2.0 * z / softcap) + 1.0))
    return z


@triton.jit
def _measured(
    row,
    target,
    classes,
    logit_scale,
    softcap,
    CAPPED: tl.constexpr,
    MEAN: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """First pass over a row: maximum, sum(e), sum(z), sum(e (z - maximum)), z of the target; e = exp(z - maximum)."""
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    plain = tl.full((), 0.0, tl.float32)
    weighted = tl.full((), 0.0, tl.float32)
    first = tl.full((), 0, tl.int32)
    while first < classes:
        at = first + tl.arange(0, BLOCK)
        inside = at < classes
        z = _capped(
            tl.load(row + at, mask=inside, other=0.0, eviction_policy="evict_last"), logit_scale, softcap, CAPPED
        )
        z = tl.where(inside, z, float("-inf"))
        higher = tl.maximum(top, tl.max(z, 0))
        # a row of -inf alone has no maximum to subtract
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shrink = tl.exp2((top - base) * _LOG2E)
        e = tl.exp2((z - base) * _LOG2E)
        if MEAN:
            plain += tl.sum(tl.where(inside, z, 0.0), 0)
        if ENTROPY:
            # what was summed under the old maximum moves along with it; nothing was while there was none
            moved = tl.where(total > 0.0, weighted + total * (top - base), 0.0)
            weighted = moved * shrink + tl.sum(tl.where(e > 0.0, e * (z - base), 0.0), 0)
        total = total * shrink + tl.sum(e, 0)
        top = higher
        first += BLOCK
    raw = tl.load(row + target, mask=(target >= 0) & (target < classes), other=float("nan"))
    picked = _capped(raw, logit_scale, softcap, CAPPED)
    return top, total, plain, weighted, picked


@triton.jit(do_not_specialize=["rows"])
def _statistics(
    logits,
    targets,
    lse_out,
    picked_out,
    mean_out,
    entropy_out,
    rows,
    classes,
    stride,
    logit_scale,
    softcap,
    CAPPED: tl.constexpr,
    MEAN: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64)
    while index < rows:
        target = tl.load(targets + index)
        if target >= 0:
            row = logits + index * stride
            top, total, plain, weighted, picked = _measured(
                row, target, classes, logit_scale, softcap, CAPPED, MEAN, ENTROPY, BLOCK
            )
            tl.store(lse_out + index, top + tl.log2(total) * _LN2)
            tl.store(picked_out + index, picked)
            if MEAN:
                tl.store(mean_out + index, plain / classes)
            if ENTROPY:
                tl.store(entropy_out + index, tl.log2(total) * _LN2 - weighted / total)
        index += tl.num_programs(0)


@triton.jit
def _overwrite(
    row,
    out,
    target,
    classes,
    logit_scale,
    softcap,
    base,
    level,
    to_lse,
    to_picked,
    to_each,
    to_entropy,
    CAPPED: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Second pass: exp(z - base) (to_lse - to_entropy (z - level)) + to_each + to_picked at the target, chain rule."""
    picked = target.to(tl.int32)
    first = tl.full((), 0, tl.int32)
    while first < classes:
        at = first + tl.arange(0, BLOCK)
        inside = at < classes
        z = _capped(tl.load(row + at, mask=inside, other=0.0), logit_scale, softcap, CAPPED)
        p = tl.exp2((z - base) * _LOG2E)
        if ENTROPY:
            grad = p * (to_lse - to_entropy * tl.where(p > 0.0, z - level, 0.0)) + to_each
        else:
            grad = p * to_lse + to_each
        grad = tl.where(at == picked, grad + to_picked, grad)
        if CAPPED:
            grad *= 1.0 - (z / softcap) * (z / softcap)
        grad *= logit_scale
        tl.store(out + at, grad.to(out.dtype.element_ty), mask=inside, eviction_policy="evict_first")
        first += BLOCK


@triton.jit
def _zero(row, target, classes, BLOCK: tl.constexpr):
    first = tl.full((), 0, tl.int32)
    while first < classes:
        at = first + tl.arange(0, BLOCK)
        tl.store(row + at, tl.zeros((BLOCK,), row.dtype.element_ty), mask=at < classes)
        first += BLOCK


@triton.jit(do_not_specialize=["rows"])
def _loss_and_gradient(
    logits,
    gradient,
    targets,
    scale,
    loss_out,
    rows,
    classes,
    stride,
    logit_scale,
    softcap,
    out_stride,
    smooth,
    z_loss,
    CAPPED: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64)
    while index < rows:
        target = tl.load(targets + index)
        row = logits + index * stride
        out = gradient + index * out_stride
        if target >= 0:
            top, total, plain, weighted, picked = _measured(
                row, target, classes, logit_scale, softcap, CAPPED, MEAN, False, BLOCK
            )
            weight = tl.load(scale).to(tl.float32)  # here, not above: no register holds it over the passes
            lse = top + tl.log2(total) * _LN2
            loss = lse - (1.0 - smooth) * picked + z_loss * lse * lse
            if MEAN:
                loss -= smooth * plain / classes
            tl.store(loss_out + index, loss * weight)
            # the sum divides after the exponential, because exp(z - lse) would carry the rounding of a large lse;
            # a target that is no class makes its row NaN
            _overwrite(
                row,
                out,
                target,
                classes,
                logit_scale,
                softcap,
                tl.where(target < classes, top, float("nan")),
                lse,
                weight * (1.0 + 2.0 * z_loss * lse) / total,
                -weight * (1.0 - smooth),
                -weight * smooth / classes,
                0.0,
                CAPPED,
                False,
                BLOCK,
            )
        else:
            _zero(out, target, classes, BLOCK)
        index += tl.num_programs(0)


@triton.jit(do_not_specialize=["rows"])
def _gradient(
    logits,
    targets,
    lse_in,
    entropy_in,
    to_lse_in,
    to_picked_in,
    to_mean_in,
    to_entropy_in,
    rows,
    classes,
    stride,
    logit_scale,
    softcap,
    CAPPED: tl.constexpr,
    MEAN: tl.constexpr,
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64)
    while index < rows:
        target = tl.load(targets + index)
        row = logits + index * stride
        if target >= 0:
            lse = tl.load(lse_in + index)
            level = lse
            to_each = 0.0
            to_entropy = 0.0
            if MEAN:
                to_each = tl.load(to_mean_in + index) / classes
            if ENTROPY:
                level = lse - tl.load(entropy_in + index)
                to_entropy = tl.load(to_entropy_in + index)
            _overwrite(
                row,
                row,
                target,
                classes,
                logit_scale,
                softcap,
                lse,
                level,
                tl.load(to_lse_in + index),
                tl.load(to_picked_in + index),
                to_each,
                to_entropy,
                CAPPED,
                ENTROPY,
                BLOCK,
            )
        else:
            _zero(row, target, classes, BLOCK)
        index += tl.num_programs(0)


def statistics(
    logits: torch.Tensor, targets: torch.Tensor, terms: LossTerms, mean: bool = True, entropy: bool = True
) -> Statistics:
    """Measure each row; as `rows.statistics`, in float32.

    Args:
        logits: `(R, V)`, last stride 1; unchanged.
        targets: int64 `(R,)`, -1 = ignored.
        terms: Scale and soft-cap.
        mean: Whether the mean is wanted.
        entropy: Whether the entropy is wanted.
    """
    out = zeros(len(logits), torch.float32, logits.device)
    with torch.cuda.device_of(logits):
        if logits.numel():
            _statistics[_grid(logits)](
                logits, targets, *out, *_shape(logits, terms), MEAN=mean, ENTROPY=entropy, **_options(logits, terms)
            )
    return out


def loss_and_gradient_(
    logits: torch.Tensor,
    targets: torch.Tensor,
    scale: torch.Tensor,
    terms: LossTerms,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute `scale * d loss / d logits`; as `rows.loss_and_gradient_`, in float32.

    Args:
        logits: `(R, V)`, last stride 1.
        targets: int64 `(R,)`, -1 = ignored.
        scale: float32 scalar on the same device.
        terms: What is added to plain cross entropy.
        out: `(R, V)`, last stride 1, for the gradient; None = the logits are overwritten.

    Returns:
        `scale * loss` of each row, float32 `(R,)`.
    """
    loss = torch.zeros(len(logits), dtype=torch.float32, device=logits.device)
    out = logits if out is None else out
    with torch.cuda.device_of(logits):
        if logits.numel():
            _loss_and_gradient[_grid(logits)](
                logits,
                out,
                targets,
                scale,
                loss,
                *_shape(logits, terms),
                out.stride(0),
                terms.label_smoothing,
                terms.z_loss,
                MEAN=terms.label_smoothing != 0.0,
                **_options(logits, terms),
            )
    return loss


def gradient_(
    logits: torch.Tensor,
    targets: torch.Tensor,
    saved: Statistics,
    upstream: Statistics,
    terms: LossTerms,
    mean: bool = True,
    entropy: bool = True,
) -> None:
    """Overwrite logits with the gradient of their statistics; as `rows.gradient_`, in float32.

    Args:
        logits: `(R, V)`, last stride 1; overwritten.
        targets: int64 `(R,)`, -1 = ignored.
        saved: What `statistics` gave for these logits.
        upstream: Gradient with regard to each of the statistics, contiguous.
        terms: Scale and soft-cap.
        mean: Whether the mean was measured.
        entropy: Whether the entropy was measured.
    """
    with torch.cuda.device_of(logits):
        if logits.numel():
            _gradient[_grid(logits)](
                logits,
                targets,
                saved.lse,
                saved.entropy,
                upstream.lse,
                upstream.picked,
                upstream.mean,
                upstream.entropy,
                *_shape(logits, terms),
                MEAN=mean,
                ENTROPY=entropy,
                **_options(logits, terms),
            )


def _shape(logits: torch.Tensor, terms: LossTerms) -> tuple[int, int, int, float, float]:
    return *logits.shape, logits.stride(0), terms.logit_scale, terms.softcap


def _options(logits: torch.Tensor, terms: LossTerms) -> dict[str, object]:
    size = logits.element_size()
    block = min(BLOCK_BYTES // size, max(128, triton.next_power_of_2(logits.shape[1])))
    return {
        "CAPPED": terms.softcap != 0.0,
        "BLOCK": block,
        "num_warps": warps(min(WARPS, max(1, block * size // 1024))),
    }


def _grid(logits: torch.Tensor) -> tuple[int]:
    """Return the number of programs: few enough that the rows under way stay in the second-level cache."""
    if not logits.is_cuda:
        return (min(2, len(logits)),)
    processors = torch.cuda.get_device_properties(logits.device).multi_processor_count
    return (min(len(logits), (1 if logits.shape[1] > 16384 else 8) * processors),)
