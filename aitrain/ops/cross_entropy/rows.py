"""Row passes over logits in plain PyTorch, in place if possible: for CPUs, and for GPUs without Triton.

Every function here takes targets in which an ignored row is -1, and gives such a row zeros. A target outside the
classes is refused on the CPU and makes its row NaN on a GPU, which cannot be asked without waiting for it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from aitrain.errors import ShapeError
from aitrain.ops.cross_entropy.reference import capped
from aitrain.ops.cross_entropy.terms import LossTerms

_LOWEST = -1e30
"""Replaces log(0), so that p log(p) is 0 there and not NaN."""


class Statistics(NamedTuple):
    """Statistics of a row of logits z, each `(R,)`, float32 (float64 of float64 logits), 0 of ignored rows."""

    lse: torch.Tensor
    """logsumexp(z)."""

    picked: torch.Tensor
    """z of the target."""

    mean: torch.Tensor
    """mean(z)."""

    entropy: torch.Tensor
    """-sum(p log p), p = softmax(z)."""


def zeros(rows: int, dtype: torch.dtype, device: torch.device) -> Statistics:
    """Return statistics to write into, each aligned to 16 bytes, lest kernels be compiled anew for every alignment.

    Args:
        rows: R.
        dtype: float32 or float64.
        device: Of the logits.
    """
    return Statistics(*torch.zeros(4, -(-rows // 4) * 4, dtype=dtype, device=device)[:, :rows])


def targets_of(targets: torch.Tensor, ignore_index: int, classes: int) -> torch.Tensor:
    """Return the targets with -1 for ignored rows.

    Args:
        targets: int64 `(M,)`.
        ignore_index: Target of a row without loss; may be any number.
        classes: V.

    Raises:
        ShapeError: On the CPU and not in compiled code, a target is no class.
    """
    ignored = targets == ignore_index
    outside = ~ignored & ((targets < 0) | (targets >= classes))
    # compiled code and fake tensors have no values to look at
    real = type(targets) is torch.Tensor and not torch.compiler.is_compiling()
    if real and targets.device.type == "cpu" and bool(outside.any()):
        row = int(outside.nonzero()[0, 0])
        raise ShapeError(
            f"targets[{row}]={int(targets[row])} is outside 0..{classes - 1} and not ignore_index={ignore_index}"
        )
    return torch.where(ignored, -1, torch.where(outside, classes, targets))


def statistics(
    logits: torch.Tensor, targets: torch.Tensor, terms: LossTerms, mean: bool = True, entropy: bool = True
) -> Statistics:
    """Measure each row.

    Args:
        logits: `(R, V)`; unchanged.
        targets: int64 `(R,)`, -1 = ignored.
        terms: Scale and soft-cap.
        mean: Whether the mean is wanted; zeros otherwise.
        entropy: Whether the entropy is wanted; zeros otherwise.
    """
    z = capped(logits, terms)
    kept = targets >= 0
    lse = torch.logsumexp(z, dim=1)
    zeros = torch.zeros_like(lse)
    picked = _picked(z, targets)
    average = z.mean(dim=1) if mean else zeros
    spread = zeros
    if entropy:
        log_p = (z - lse[:, None]).clamp_(min=_LOWEST)
        spread = -(torch.exp(log_p).mul_(log_p)).sum(dim=1)
    return Statistics(*(torch.where(kept, x, 0.0) for x in (lse, picked, average, spread)))


def losses_of(measured: Statistics, terms: LossTerms) -> torch.Tensor:
    """Return the loss of each row from its statistics, differentiable where they are.

    Args:
        measured: Of the rows; the mean only matters with label smoothing.
        terms: What is added to plain cross entropy.
    """
    losses = measured.lse - (1 - terms.label_smoothing) * measured.picked
    if terms.label_smoothing:  # 0 times the mean would be NaN for a logit of -inf
        losses = losses - terms.label_smoothing * measured.mean
    return losses + terms.z_loss * measured.lse.square() if terms.z_loss else losses


def loss_and_gradient_(
    logits: torch.Tensor,
    targets: torch.Tensor,
    scale: torch.Tensor,
    terms: LossTerms,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute `scale * d loss / d logits`, row by row.

    Args:
        logits: `(R, V)`.
        targets: int64 `(R,)`, -1 = ignored.
        scale: Scalar that multiplies loss and gradient.
        terms: What is added to plain cross entropy.
        out: `(R, V)` for the gradient; None = the logits are overwritten.

    Returns:
        `scale * loss` of each row `(R,)`, float32 or float64.
    """
    logits = logits if out is None else out.copy_(logits)
    z = _working(logits, terms)
    slope = _slope(z, terms)
    kept = targets >= 0
    smooth = terms.label_smoothing
    picked = _picked(z, targets)
    mean = z.mean(dim=1) if smooth else None
    top = z.amax(dim=1, keepdim=True)
    total = z.sub_(top).exp_().sum(dim=1)
    lse = top[:, 0] + total.log()
    loss = lse - (1 - smooth) * picked + terms.z_loss * lse.square()
    if mean is not None:
        loss = loss - smooth * mean
    weight = torch.where(kept, scale.to(z.dtype), 0.0)
    z.mul_((weight * (1 + 2 * terms.z_loss * lse) / total)[:, None])
    if smooth:
        z.sub_((weight * (smooth / z.shape[1]))[:, None])
    _finish(logits, z, targets, -(1 - smooth) * weight, slope, terms)
    return torch.where(kept, loss * scale, 0.0)


def gradient_(
    logits: torch.Tensor,
    targets: torch.Tensor,
    saved: Statistics,
    upstream: Statistics,
    terms: LossTerms,
    mean: bool = True,
    entropy: bool = True,
) -> None:
    """Overwrite logits with the gradient of their statistics.

    Args:
        logits: `(R, V)`; overwritten.
        targets: int64 `(R,)`, -1 = ignored.
        saved: What `statistics` gave for these logits.
        upstream: Gradient with regard to each of the statistics.
        terms: Scale and soft-cap.
        mean: Whether the mean was measured.
        entropy: Whether the entropy was measured.
    """
    z = _working(logits, terms)
    slope = _slope(z, terms)
    kept = targets >= 0
    to_lse, to_picked, to_mean, to_entropy = (torch.where(kept, x.to(z.dtype), 0.0) for x in upstream)
    log_p = z.sub_(saved.lse[:, None])
    if entropy:
        # d entropy / d z_j = -p_j (log p_j + entropy)
        tilt = log_p.clamp_(min=_LOWEST) + saved.entropy[:, None]
        z = log_p.exp_().mul_(tilt.mul_(-to_entropy[:, None]).add_(to_lse[:, None]))
    else:
        z = log_p.exp_().mul_(to_lse[:, None])
    if mean:
        z.add_((to_mean / z.shape[1])[:, None])
    _finish(logits, z, targets, to_picked, slope, terms)


def _working(logits: torch.Tensor, terms: LossTerms) -> torch.Tensor:
    """Return cap(scale * logits) to overwrite: the logits themselves when their type is wide enough."""
    z = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    if terms.logit_scale != 1.0:
        z.mul_(terms.logit_scale)
    return z.div_(terms.softcap).tanh_().mul_(terms.softcap) if terms.softcap else z


def _slope(z: torch.Tensor, terms: LossTerms) -> torch.Tensor | None:
    """Return d z / d (scale * logits), or None if it is 1."""
    return 1 - (z / terms.softcap).square_() if terms.softcap else None


def _picked(z: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    classes = z.shape[1]
    inside = z.gather(1, targets.clamp(0, classes - 1)[:, None])[:, 0]
    return torch.where(targets < classes, inside, float("nan"))


def _finish(
    logits: torch.Tensor,
    z: torch.Tensor,
    targets: torch.Tensor,
    to_target: torch.Tensor,
    slope: torch.Tensor | None,
    terms: LossTerms,
) -> None:
    to_target = torch.where(targets < z.shape[1], to_target, float("nan"))
    z.scatter_add_(1, targets.clamp(0, z.shape[1] - 1)[:, None], to_target[:, None])
    if slope is not None:
        z.mul_(slope)
    if terms.logit_scale != 1.0:
        z.mul_(terms.logit_scale)
    if z is not logits:
        logits.copy_(z)
    ignored = targets < 0  # 0 times what stood there is no zero where that was not finite
    if logits.device.type == "cpu":
        logits.index_fill_(0, ignored.nonzero()[:, 0], 0.0)
    else:
        logits.masked_fill_(ignored[:, None], 0.0)
