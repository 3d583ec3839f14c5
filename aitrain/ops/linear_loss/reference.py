"""The linear losses in plain PyTorch, with all logits at once: what the chunked ones must equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from aitrain.ops.cross_entropy.reference import row_losses, row_statistics
from aitrain.ops.cross_entropy.terms import LossTerms


def linear_row_losses(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    terms: LossTerms,
    ignore_index: int = -100,
) -> torch.Tensor:
    """Return the loss of each row.

    Args:
        hidden: `(M, H)`.
        weight: `(V, H)`.
        targets: int64 `(M,)`.
        bias: `(V,)` or None.
        terms: What is added to plain cross entropy.
        ignore_index: Target of a row without loss.
    """
    return row_losses(F.linear(hidden, weight, bias), targets, terms, ignore_index)


def linear_row_statistics(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    terms: LossTerms,
    ignore_index: int = -100,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log-probability of the target, entropy and log-sum-exp of each row.

    Args:
        hidden: `(M, H)`.
        weight: `(V, H)`.
        targets: int64 `(M,)`.
        bias: `(V,)` or None.
        terms: Scale and soft-cap.
        ignore_index: Target of a row that does not count.
    """
    return row_statistics(F.linear(hidden, weight, bias), targets, terms, ignore_index)
