"""The losses as anyone would write them in torch, all logits at once: independent of the package's own reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.distributions import Categorical

from aitrain.ops.cross_entropy.terms import LossTerms

ALL_TERMS = LossTerms(logit_scale=0.7, softcap=5.0, label_smoothing=0.1, z_loss=1e-2)
ANY_TERMS = {
    "plain": LossTerms(),
    "logit scale": LossTerms(logit_scale=0.5),
    "soft-cap": LossTerms(softcap=3.0),
    "smoothing": LossTerms(label_smoothing=0.2),
    "z-loss": LossTerms(z_loss=0.1),
    "all": ALL_TERMS,
}
SCALED = LossTerms(logit_scale=0.7, softcap=5.0)


def logits_of(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, terms: LossTerms) -> torch.Tensor:
    z = F.linear(hidden.flatten(0, -2), weight, bias)
    z = terms.logit_scale * (z if z.dtype == torch.float64 else z.float())
    return torch.tanh(z / terms.softcap) * terms.softcap if terms.softcap else z


def row_losses(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    terms: LossTerms | None = None,
    ignore_index: int = -100,
) -> torch.Tensor:
    """Return the loss of each row, shaped like the targets, 0 where ignored."""
    terms = terms or LossTerms()
    z, aims = logits_of(hidden, weight, bias, terms), targets.flatten()
    given = {"ignore_index": ignore_index, "label_smoothing": terms.label_smoothing, "reduction": "none"}
    penalty = terms.z_loss * torch.logsumexp(z, 1) ** 2 * (aims != ignore_index)
    return (F.cross_entropy(z, aims, **given) + penalty).view(targets.shape)


def mean_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, **given: object) -> torch.Tensor:
    """Return the mean over the rows that count, 0 of none."""
    counted = (targets != given.get("ignore_index", -100)).sum().clamp(min=1)
    return row_losses(hidden, weight, targets, **given).sum() / counted  # type: ignore[arg-type]


def row_statistics(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    terms: LossTerms | None = None,
    ignore_index: int = -100,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log-probability, entropy and log-sum-exp of each row, shaped like the targets, 0 where ignored."""
    z, aims = logits_of(hidden, weight, bias, terms or LossTerms()), targets.flatten()
    counted = aims != ignore_index
    said = -F.cross_entropy(z, aims, ignore_index=ignore_index, reduction="none")
    spread = Categorical(logits=z, validate_args=False).entropy() * counted
    level = torch.logsumexp(z, 1) * counted
    return tuple(x.view(targets.shape) for x in (said, spread, level))  # type: ignore[return-value]


def contrast(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: torch.Tensor | float,
    targets: torch.Tensor | None = None,
    symmetric: bool = False,
) -> torch.Tensor:
    """Return InfoNCE from the matrix of all similarities."""
    matrix = F.linear(queries * scale, keys)
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
    own = torch.arange(len(queries)) if targets is None else targets
    loss = F.cross_entropy(matrix, own)
    return (loss + F.cross_entropy(matrix.T, own)) / 2 if symmetric else loss


def some_targets(rows: int, classes: int, ignored: float = 0.3, ignore_index: int = -100) -> torch.Tensor:
    """Return targets that hold the first class, the last class, and ignored rows where there are enough rows."""
    targets = torch.randint(classes, (rows,))
    targets[1:2], targets[2:3] = classes - 1, 0
    targets[3:] = torch.where(torch.rand(max(rows - 3, 0)) < ignored, ignore_index, targets[3:])
    return targets
