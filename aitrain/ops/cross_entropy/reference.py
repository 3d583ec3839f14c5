"""Cross entropy in plain PyTorch, differentiable by autograd: what every other implementation must equal."""

from __future__ import annotations

import torch

from aitrain.ops.cross_entropy.terms import LossTerms


def capped(logits: torch.Tensor, terms: LossTerms) -> torch.Tensor:
    """Return cap(scale * logits) in float32 (float64 stays float64).

    Args:
        logits: Any shape.
        terms: Scale and soft-cap.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32)) * terms.logit_scale
    return terms.softcap * torch.tanh(z / terms.softcap) if terms.softcap else z


def row_losses(logits: torch.Tensor, targets: torch.Tensor, terms: LossTerms, ignore_index: int = -100) -> torch.Tensor:
    """Return the loss of each row, 0 where it is ignored.

    Args:
        logits: `(M, V)`.
        targets: int64 `(M,)`.
        terms: What is added to plain cross entropy.
        ignore_index: Target of a row without loss.

    Returns:
        `(M,)`, float32 or float64.
    """
    z = capped(logits, terms)
    lse = torch.logsumexp(z, dim=1)
    kept = targets != ignore_index
    picked = z.gather(1, torch.where(kept, targets, 0)[:, None])[:, 0]
    smooth = terms.label_smoothing
    loss = lse - (1 - smooth) * picked + terms.z_loss * lse.square()
    if smooth:
        loss = loss - smooth * z.mean(dim=1)
    return torch.where(kept, loss, 0.0)


def row_statistics(
    logits: torch.Tensor, targets: torch.Tensor, terms: LossTerms, ignore_index: int = -100
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log-probability of the target, entropy and log-sum-exp of each row, 0 where it is ignored.

    Args:
        logits: `(M, V)`.
        targets: int64 `(M,)`.
        terms: Only scale and soft-cap have a meaning here.
        ignore_index: Target of a row that does not count.

    Returns:
        Three times `(M,)`, float32 or float64, in nats.
    """
    z = capped(logits, terms)
    lse = torch.logsumexp(z, dim=1)
    kept = targets != ignore_index
    picked = z.gather(1, torch.where(kept, targets, 0)[:, None])[:, 0]
    log_p = z - lse[:, None]
    entropy = -(log_p.exp() * log_p.clamp(min=-1e30)).sum(dim=1)  # p log(p) is 0 where p is 0
    return tuple(torch.where(kept, x, 0.0) for x in (picked - lse, entropy, lse))  # type: ignore[return-value]
