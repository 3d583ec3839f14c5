"""Keys of the group `adapter`: train all weights of the model, or small matrices added to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Adapter:
    """Which weights are trained."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        yield from ()


@dataclass
class NoAdapter(Adapter):
    """Every weight of the model is trained."""


@dataclass
class Lora(Adapter):
    """Low-rank adapters (Hu et al., arXiv:2106.09685): two small matrices added to each linear layer."""

    rank: int = 16
    """Rank of the two matrices: a higher rank can learn more and needs more memory."""

    alpha: float = 32.0
    """Scale of the update, which is multiplied by `alpha / rank`."""

    dropout: float = 0.0
    """Share of the adapter's inputs set to zero while training."""

    target_modules: list[str] | None = None
    """Names (endings) of the linear layers that get an adapter; `null` = all of them except the output head."""

    modules_to_save: list[str] | None = None
    """Names (endings) of layers that are trained in full together with the adapters, for instance
    `[embed_tokens,lm_head]` for new tokens; `null` = none.
    """

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        if self.rank < 1:
            yield f"adapter.rank={self.rank} must be at least 1: 8 to 64 are usual"
        if self.alpha <= 0:
            yield f"adapter.alpha={self.alpha} must be above 0: twice the rank is usual"
        if not 0 <= self.dropout < 1:
            yield f"adapter.dropout={self.dropout} must be at least 0 and below 1"
        if self.target_modules is not None and not self.target_modules:
            yield "adapter.target_modules=[] is empty: write null for all linear layers"
        if self.modules_to_save is not None and not self.modules_to_save:
            yield "adapter.modules_to_save=[] is empty: write null for none"
        both = set(self.target_modules or ()) & set(self.modules_to_save or ())
        if both:
            yield (
                f"adapter.target_modules and adapter.modules_to_save both name {', '.join(sorted(both))}: "
                "a layer either gets an adapter or is trained in full, so name it in one of them"
            )


@dataclass
class Dora(Lora):
    """Weight-decomposed low-rank adapters (Liu et al., arXiv:2402.09353)."""


@dataclass
class Qlora(Lora):
    """LoRA on a base model loaded in 4-bit NF4 (Dettmers et al., arXiv:2305.14314); needs a GPU and the extra
    `qlora`.
    """
