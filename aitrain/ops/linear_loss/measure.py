"""What evaluation wants of a linear head: losses and the likeliest class of each row, without keeping the logits."""

from __future__ import annotations

import torch

from aitrain.ops.cross_entropy.rows import targets_of
from aitrain.ops.cross_entropy.terms import LossTerms
from aitrain.ops.linear_loss.chunks import CHUNK_BYTES, Head, measured


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
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    head = Head(
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        terms or LossTerms(),
        chunk_bytes if chunk_bytes is not None else CHUNK_BYTES[device],
        valid_rows,
    )
    labels = targets_of(targets.reshape(-1), ignore_index, len(weight))
    losses, best = measured(hidden.reshape(-1, hidden.shape[-1]).to(dtype), head, labels)
    return losses.view(targets.shape), best.view(targets.shape)
