"""Keys of the group `strategy`: how model, gradients and optimizer state are distributed over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Strategy:
    """How the work is divided among the ranks."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        yield from ()


@dataclass
class Ddp(Strategy):
    """Every rank holds the full model (Li et al., arXiv:2006.15704)."""


@dataclass
class Fsdp(Strategy):
    """PyTorch's fully sharded data parallel, second generation (FSDP2): weights, gradients, optimizer state sharded."""

    reshard_after_forward: bool = True
    """Free the gathered weights after the forward pass: less memory, one more all-gather."""


@dataclass
class DeepspeedZero1(Strategy):
    """DeepSpeed ZeRO stage 1 (Rajbhandari et al., arXiv:1910.02054): the optimizer state is sharded."""

    offload_optimizer: bool = False
    """Keep the optimizer state in host memory, and take the optimizer step there."""


@dataclass
class DeepspeedZero2(DeepspeedZero1):
    """DeepSpeed ZeRO stage 2: optimizer state and gradients are sharded."""


@dataclass
class DeepspeedZero3(DeepspeedZero2):
    """DeepSpeed ZeRO stage 3: optimizer state, gradients and weights are sharded."""

    offload_parameters: bool = False
    """Keep the weights in host memory and load each layer when it is used."""
