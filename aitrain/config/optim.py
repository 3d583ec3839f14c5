"""Keys of the group `optim`: the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from aitrain.config.custom import UserClass


class FusedStep(Enum):
    """When to use aitrain's own AdamW kernels."""

    auto = "auto"
    always = "always"
    never = "never"


@dataclass
class Optim:
    """Keys of every optimizer."""

    lr: float = 2e-5
    """Peak learning rate, reached after the warm-up of the schedule."""

    weight_decay: float = 0.0
    """Decoupled weight decay on matrices; norms, biases and other vectors are not decayed."""

    max_grad_norm: float | None = 1.0
    """The gradient of the global batch is scaled down to this 2-norm; `null` = no clipping."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        if not self.lr > 0:
            yield f"optim.lr={self.lr} must be above 0: 2e-5 (full) or 2e-4 (LoRA) are usual"
        if self.weight_decay < 0:
            yield f"optim.weight_decay={self.weight_decay} must be 0 or more"
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            yield f"optim.max_grad_norm={self.max_grad_norm} must be above 0, or null for no clipping"


def _beta_faults(betas: list[float]) -> Iterator[str]:
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        yield f"optim.betas={list(betas)} must be two numbers, each at least 0 and below 1: [0.9, 0.95] is usual"


@dataclass
class AdamW(Optim):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101)."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay rates of the first and second moment."""

    eps: float = 1e-8
    """Added to the root of the second moment."""

    fused: FusedStep = FusedStep.auto
    """When to use aitrain's own AdamW kernels: `auto` = on a GPU, `always` = also on the CPU, `never` = torch's
    AdamW, or for 8 bits that of bitsandbytes (extra `qlora`)."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        yield from super().faults()
        yield from _beta_faults(self.betas)


@dataclass
class AdamW8bit(AdamW):
    """AdamW with moments in 8 bits (Dettmers et al., arXiv:2110.02861); needs a GPU and unsharded parameters."""


@dataclass
class Muon(Optim):
    """Muon on the hidden matrices (Jordan et al., 2024), AdamW on embeddings, head and vectors."""

    momentum: float = 0.95
    """Momentum of the matrices."""

    nesterov: bool = True
    """Whether the momentum is Nesterov's."""

    orthogonalise_steps: int = 5
    """Newton-Schulz iterations per step."""

    adamw_lr: float = 3e-4
    """Learning rate of AdamW for everything except hidden matrices."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay rates of AdamW for everything except hidden matrices."""

    eps: float = 1e-8
    """Epsilon of that AdamW."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        yield from super().faults()
        yield from _beta_faults(self.betas)
        if not 0 <= self.momentum < 1:
            yield f"optim.momentum={self.momentum} must be at least 0 and below 1"
        if self.orthogonalise_steps < 1:
            yield f"optim.orthogonalise_steps={self.orthogonalise_steps} must be at least 1: 5 is usual"
        if not self.adamw_lr > 0:
            yield f"optim.adamw_lr={self.adamw_lr} must be above 0"


@dataclass
class Sgd(Optim):
    """Stochastic gradient descent; mostly for tests, because unlike Adam it does not hide a wrongly scaled gradient."""

    momentum: float = 0.0
    """Momentum; 0 = none."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        yield from super().faults()
        if not 0 <= self.momentum < 1:
            yield f"optim.momentum={self.momentum} must be at least 0 and below 1"


@dataclass
class CustomOptim(UserClass, Optim):
    """Your own optimizer: a subclass of `torch.optim.Optimizer` in your own file, constructed with `lr` and its
    options. Strategies other than ddp shard the weights; the class must then declare `elementwise = True`,
    which states that each element is updated from its own gradient alone."""
