"""What evaluation wants of a linear head: losses and the likeliest class of each row, without keeping the logits."""

from __future__ import annotations

import torch

from aitrain.ops.cross_entropy.terms import LossTerms
from aitrain.ops.linear_loss.chunks import measured
from aitrain.ops.linear_loss.op import checked


@torch.no_grad()
def linear_predictions(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    terms: LossTerms | None = None,
    ignore_index: int = -100,
    chunk_bytes: int | None = None,
    valid_rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's loss and its likeliest class; not differentiable.

    Args:
        hidden: `(..., H)`.
        weight: `(V, H)`.
        targets: int64 `(...)`, classes or `ignore_index`.
        bias: `(V,)` or None.
        terms: Scale and soft-cap; None = neither.
        ignore_index: Target of a row that does not count.
        chunk_bytes: As in `linear_cross_entropy`.
        valid_rows: As in `linear_cross_entropy`.

    Returns:
        Losses in nats, 0 where ignored, and classes, -1 where ignored; both of the shape of `targets`.

    Raises:
        ShapeError: A shape, a type or a number does not fit.
    """
    rows, labels, options = checked(
        hidden, weight, targets, bias, terms or LossTerms(), ignore_index, chunk_bytes, valid_rows
    )
    losses, best = measured(rows.to(options.dtype), options.head(weight, bias), labels)
    return losses.view(targets.shape), best.view(targets.shape)
