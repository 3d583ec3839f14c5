"""Losses of a linear head without its logits: cross entropy, log-probabilities, and the contrastive InfoNCE."""

from __future__ import annotations

from typing import NamedTuple

import torch

from aitrain.errors import ShapeError
from aitrain.ops.cross_entropy.rows import losses_of, targets_of
from aitrain.ops.cross_entropy.terms import LossTerms
from aitrain.ops.linear_loss.autograd import Options, row_statistics, summed_loss
from aitrain.ops.linear_loss.chunks import CHUNK_BYTES

REDUCTIONS = ("sum", "mean", "none")


class LogProbs(NamedTuple):
    """Output of the head for each row, in nats; 0 where it is ignored. Shape of the targets, float32 or float64."""

    logprobs: torch.Tensor
    """Log-probability of the target."""

    entropy: torch.Tensor
    """Of the distribution over all classes."""

    lse: torch.Tensor
    """Log-sum-exp of the logits."""


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    terms: LossTerms | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    num_items: torch.Tensor | float | None = None,
    chunk_bytes: int | None = None,
    valid_rows: int | None = None,
) -> torch.Tensor:
    """Return the cross entropy of `hidden @ weight.T + bias`, computed in chunks of rows.

    Peak memory is `chunk_bytes` and the gradients, instead of several times the logits. Rows that are ignored are
    dropped before the matrix products. Under autocast the products run in its type; the weight's gradient is summed in
    float32.

    Args:
        hidden: `(..., H)`.
        weight: `(V, H)`, a vocabulary's head.
        targets: int64 `(...)`, classes 0 to V - 1 or `ignore_index`.
        bias: `(V,)` or None.
        terms: Label smoothing, z-loss, soft-cap, logit scale; None = plain cross entropy.
        ignore_index: Target of a row without loss.
        reduction: `sum`, `mean` (over the rows that count; 0 when there are none), or `none`.
        num_items: With `sum`: what the sum is divided by, for instance the trained tokens of the whole global
            batch; may be 0 when no row counts, and the loss is 0 then.
        chunk_bytes: Bytes of logits held at a time; None = 1 GiB on a GPU, 16 MiB on a CPU.
        valid_rows: On a GPU: how many rows count, or more, as the data loader knows it without asking the GPU; None =
            no row is dropped there. When more rows count than said, the loss is NaN.

    Returns:
        Scalar, or the shape of `targets` with `none`; float32, or float64 of float64 inputs. A target outside the
        classes makes it NaN on a GPU.

    Raises:
        ShapeError: Shapes or types do not fit, or (on the CPU) a target is no class.

    Source:
        Wijmans et al. 2025, "Cut Your Losses in Large-Vocabulary Language Models", for what there is to save.
    """
    if reduction not in REDUCTIONS:
        raise ShapeError(f"reduction={reduction} is unknown: write sum, mean or none")
    if num_items is not None and reduction != "sum":
        raise ShapeError(f"num_items needs reduction=sum, not {reduction}")
    terms = terms or LossTerms()
    rows, labels, options = checked(hidden, weight, targets, bias, terms, ignore_index, chunk_bytes, valid_rows)
    if reduction == "none":
        wants = options._replace(mean=terms.label_smoothing != 0.0, entropy=False)
        return losses_of(row_statistics(rows, weight, bias, labels, wants), terms).view(targets.shape)
    if reduction == "mean":
        num_items = (labels >= 0).sum().clamp(min=1)
    scale = _scale(labels, num_items, torch.promote_types(rows.dtype, torch.float32))
    return summed_loss(rows, weight, bias, labels, scale, options)


def _scale(labels: torch.Tensor, num_items: torch.Tensor | float | None, dtype: torch.dtype) -> torch.Tensor:
    """Return 1 / num_items on the device of the labels, without keeping the host waiting for it."""
    if isinstance(num_items, torch.Tensor):
        if num_items.numel() != 1:
            raise ShapeError(f"num_items has shape {tuple(num_items.shape)}: it must be one number")
        items = num_items.reshape(()).to(labels.device, dtype, non_blocking=True)
    else:  # filled there: a number that is copied to a GPU keeps the host waiting
        items = torch.full((), 1.0 if num_items is None else num_items, dtype=dtype, device=labels.device)
    # no rows and no items: the 0 of an ignored row must not meet 1 / 0
    return torch.where((labels >= 0).any(), items.reciprocal(), 0.0)


def linear_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    terms: LossTerms | None = None,
    ignore_index: int = -100,
    chunk_bytes: int | None = None,
    valid_rows: int | None = None,
) -> LogProbs:
    """Return log-probabilities, entropies and log-sum-exps of `hidden @ weight.T + bias`, each differentiable.

    Preference, reward and distillation losses are a few lines of PyTorch on top. The backward pass makes the logits a
    second time, chunk by chunk.

    Args:
        hidden: `(..., H)`.
        weight: `(V, H)`.
        targets: int64 `(...)`, classes or `ignore_index`.
        bias: `(V,)` or None.
        terms: Scale (1 / temperature) and soft-cap; smoothing and z-loss have no meaning here and are refused.
        ignore_index: Target of a row that does not count.
        chunk_bytes: As in `linear_cross_entropy`.
        valid_rows: As in `linear_cross_entropy`.

    Raises:
        ShapeError: Shapes or types do not fit, or (on the CPU) a target is no class.
    """
    terms = terms or LossTerms()
    if terms.label_smoothing or terms.z_loss:
        raise ShapeError("linear_logprobs: label_smoothing and z_loss belong to a loss, not to log-probabilities")
    rows, labels, options = checked(hidden, weight, targets, bias, terms, ignore_index, chunk_bytes, valid_rows)
    lse, picked, _, entropy = row_statistics(rows, weight, bias, labels, options._replace(mean=False))
    return LogProbs(*(x.view(targets.shape) for x in (picked - lse, entropy, lse)))


def info_nce(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: torch.Tensor | float,
    targets: torch.Tensor | None = None,
    *,
    symmetric: bool = False,
    chunk_bytes: int | None = None,
) -> torch.Tensor:
    """Return the contrastive InfoNCE loss without the matrix of all similarities.

    Args:
        queries: `(B, D)`, normalised by the caller where cosine similarity is meant.
        keys: `(N, D)`, N at least B; the others are negatives for every query.
        scale: 1 / temperature; a tensor that requires a gradient gets one.
        targets: int64 `(B,)`, which key belongs to each query; None = key i to query i.
        symmetric: Average with the loss of keys against queries, as CLIP does; needs `B == N` and no `targets`.
        chunk_bytes: As in `linear_cross_entropy`.

    Returns:
        Scalar: the mean over the queries.

    Raises:
        ShapeError: Shapes do not fit.

    Source:
        van den Oord et al. 2018, equation 4; Radford et al. 2021, figure 3 (symmetric).
    """
    if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1]:
        raise ShapeError(
            f"info_nce: queries {tuple(queries.shape)} and keys {tuple(keys.shape)} must be (B, D), (N, D)"
        )
    if targets is None and len(keys) < len(queries):
        raise ShapeError(f"info_nce: {len(queries)} queries have only {len(keys)} keys: give targets")
    if symmetric and (targets is not None or len(keys) != len(queries)):
        raise ShapeError("info_nce: symmetric needs as many keys as queries, in the same order, and no targets")
    own = torch.arange(len(queries), device=queries.device) if targets is None else targets
    loss = linear_cross_entropy(queries * scale, keys, own, chunk_bytes=chunk_bytes, ignore_index=-1)
    if not symmetric:
        return loss
    return (loss + linear_cross_entropy(keys * scale, queries, own, chunk_bytes=chunk_bytes, ignore_index=-1)) / 2


def checked(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    terms: LossTerms,
    ignore_index: int,
    chunk_bytes: int | None,
    valid_rows: int | None,
) -> tuple[torch.Tensor, torch.Tensor, Options]:
    """Return rows `(M, H)`, targets `(M,)` and options, or refuse what does not fit.

    Args:
        hidden: `(..., H)`.
        weight: `(V, H)`.
        targets: int64 `(...)`.
        bias: `(V,)` or None.
        terms: What is added to plain cross entropy.
        ignore_index: Target of a row without loss.
        chunk_bytes: Logits held at a time; None = what suits the device.
        valid_rows: Upper bound of the rows that count, or None.

    Raises:
        ShapeError: A shape, a type or a number does not fit.
    """
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1] or weight.shape[0] == 0:
        raise ShapeError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be (..., H) and (V, H); an empty "
            "weight means that a sharding strategy holds it elsewhere: call this inside the head's own forward"
        )
    if targets.shape != hidden.shape[:-1] or targets.dtype != torch.int64:
        raise ShapeError(
            f"targets must be int64 {tuple(hidden.shape[:-1])}, one per row, not {targets.dtype} {tuple(targets.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"bias {tuple(bias.shape)} must be ({len(weight)},), one per class")
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device) and hidden.dtype != torch.float64  # which autocast leaves alone, too
    dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
    if not hidden.is_floating_point():
        raise ShapeError(f"hidden must be floating point, not {hidden.dtype}")
    if not autocast and weight.dtype != dtype:
        raise ShapeError(f"hidden is {hidden.dtype} and weight {weight.dtype}: cast one of them, or use autocast")
    budget = chunk_bytes if chunk_bytes is not None else CHUNK_BYTES[device]
    if budget <= 0:
        raise ShapeError(f"chunk_bytes={budget} must be positive")
    if valid_rows is not None and valid_rows < 0:
        raise ShapeError(f"valid_rows={valid_rows} must not be negative")
    numbers = (terms.logit_scale, terms.softcap, terms.label_smoothing, terms.z_loss)
    labels = targets_of(targets.reshape(-1), ignore_index, len(weight))
    return hidden.reshape(-1, hidden.shape[-1]), labels, Options(numbers, budget, valid_rows, dtype)
