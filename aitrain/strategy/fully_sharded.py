"""FSDP2: weights, gradients and optimizer state sharded per transformer block, without a wrapper around the model."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from aitrain.config.strategy import Fsdp
from aitrain.strategy.state import LocalState


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a model, outermost ones only: each becomes one unit of sharding.

    Args:
        model: A Hugging Face model (which names its blocks in `_no_split_modules`), PEFT-wrapped or not, or any model
            that keeps its blocks in a `ModuleList`.
    """
    named = {name for module in model.modules() for name in (getattr(module, "_no_split_modules", None) or ())}
    found = [module for module in model.modules() if type(module).__name__ in named]
    if not found:
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        sizes = [sum(p.numel() for p in entry.parameters()) for entry in lists]
        found = list(lists[sizes.index(max(sizes))]) if lists else []
    inner = {id(child) for module in found for child in module.modules() if child is not module}
    return [module for module in found if id(module) not in inner]


class FullySharded(LocalState, ModelParallelStrategy):  # type: ignore[misc]
    """Lightning's ModelParallelStrategy with the sharding done here instead of in the task.

    Args:
        config: The recipe's options.
        bf16: Compute in bf16; weights, reductions and optimizer stay in fp32.
        world: Ranks to shard over.
        kwargs: For `ModelParallelStrategy`.
    """

    def __init__(self, config: Fsdp, bf16: bool, world: int, **kwargs: Any) -> None:
        super().__init__(data_parallel_size=world, tensor_parallel_size=1, **kwargs)
        self._config = config
        self._bf16 = bf16

    def setup(self, trainer: Any) -> None:
        """Shard the model block by block, then let Lightning build the optimizer over the shards.

        Args:
            trainer: Lightning's trainer.
        """
        model = self.trained_model
        policy = (
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            if self._bf16
            else MixedPrecisionPolicy()
        )
        options: dict[str, Any] = {
            "mesh": self.device_mesh["data_parallel"],
            "reshard_after_forward": self._config.reshard_after_forward,
            "mp_policy": policy,
        }
        model.to(self.root_device)
        for block in blocks(model):
            fully_shard(block, **options)
        fully_shard(model, **options)
        if hasattr(model, "generate"):
            # peft calls the inner model from here, past the hooks that gather the embedding and the head
            register_fsdp_forward_method(model, "generate")
        super().setup(trainer)
