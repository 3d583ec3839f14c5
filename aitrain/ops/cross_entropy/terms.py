"""What is added to plain cross entropy, and the rules of each term."""

from __future__ import annotations

from dataclasses import dataclass

from aitrain.errors import ShapeError


@dataclass(frozen=True)
class LossTerms:
    """The terms of one cross entropy; the defaults are plain cross entropy.

    With z = cap(logit_scale * logits) and s = label_smoothing, the loss of a row with target t is
    `logsumexp(z) - (1 - s) z_t - s mean(z) + z_loss * logsumexp(z)**2`, cap(x) = softcap * tanh(x / softcap).

    Source:
        Szegedy et al. 2016, section 7 (smoothing); Chowdhery et al. 2022, section 5 (z-loss); Gemma Team 2024,
        section 2 (soft-cap).
    """

    logit_scale: float = 1.0
    softcap: float = 0.0
    """0 = none."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ShapeError(f"label_smoothing={self.label_smoothing} must be at least 0 and below 1")
        if self.softcap < 0.0:
            raise ShapeError(f"softcap={self.softcap} must be positive, or 0 for none")
        if self.z_loss < 0.0:
            raise ShapeError(f"z_loss={self.z_loss} must not be negative")
