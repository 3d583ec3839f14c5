"""Which keys a query sees within its document, and how scores become weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aitrain.errors import RecipeError


@dataclass(frozen=True)
class Pattern:
    """The same in every document of a pack."""

    causal: bool = True

    window: int | None = None
    """Keys a query sees at most on one side, itself included; None = all. Hugging Face's `sliding_window`."""

    scale: float | None = None
    """Factor on query times key; None = 1 / sqrt(width of a head)."""

    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap); None = they stay."""

    dropout: float = 0.0
    """Share of the weights that is dropped."""

    def __post_init__(self) -> None:
        faults = []
        if self.window is not None and self.window < 1:
            faults.append(f"window={self.window}: a query sees itself at least, so write 1 or more, or None for all")
        if self.softcap is not None and not self.softcap > 0:
            faults.append(f"softcap={self.softcap}: write a positive number, or None for no cap")
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout={self.dropout}: write a share from 0 up to, but not including, 1")
        if faults:
            raise RecipeError(faults)

    def scale_of(self, width: int) -> float:
        """Return the factor for heads of this width."""
        return 1 / math.sqrt(width) if self.scale is None else self.scale

    def sides(self) -> tuple[int, int]:
        """Return how many keys before and after itself a query sees; -1 = all. FlashAttention's `window_size`."""
        if self.window is None:
            return (-1, 0) if self.causal else (-1, -1)
        return (self.window - 1, 0 if self.causal else self.window - 1)
