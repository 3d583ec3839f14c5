"""What evaluation needs from a linear head: losses and the likeliest class of each row, without keeping the logits."""

from __future__ import annotations

from typing import Any

import torch

from aitrain.ops.cross_entropy.terms import LossTerms
from aitrain.ops.linear_loss.autograd import OPTIONS, TENSORS, Options, dispatched
from aitrain.ops.linear_loss.chunks import measured
from aitrain.ops.linear_loss.op import checked
from aitrain.ops.registration import register


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
    run = _op if dispatched(rows) else _run
    losses, best = run(rows, weight, bias, labels, list(options.terms), *options[1:4])
    return losses.view(targets.shape), best.view(targets.shape)


def _run(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, *flat: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    options = Options(tuple(flat[0]), *flat[1:])  # type: ignore[arg-type]
    return measured(hidden.to(options.dtype), options.head(weight, bias), targets)


def _fake(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, *flat: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    losses = hidden.new_empty(len(hidden), dtype=torch.promote_types(flat[3], torch.float32))
    return losses, torch.empty_like(targets)


_op = register(f"linear_predictions({TENSORS}, {OPTIONS}) -> (Tensor, Tensor)", _run, _fake)
