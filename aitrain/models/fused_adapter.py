"""peft's LoRA layer through aitrain's op, where that computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLayer
from torch import nn

from aitrain.ops.lora.op import lora_linear


def is_adapted(module: nn.Module) -> bool:
    """Whether the module is a linear layer of peft with an adapter beside it."""
    return isinstance(module, LoraLayer)


def why_not(module: nn.Module) -> str | None:
    """Return why the op does not fit this layer for good, or None when it does.

    Args:
        module: A layer for which `is_adapted` holds.
    """
    layer: Any = module
    if len(layer.lora_A) != 1:
        return f"it has {len(layer.lora_A)} adapters"
    (name,) = layer.lora_A
    base = layer.get_base_layer()
    if name in layer.lora_variant:
        return f"its adapter is a {type(layer.lora_variant[name]).__name__}"
    if type(base) is not nn.Linear:
        return f"its base layer is a {type(base).__name__}"
    if getattr(layer.lora_dropout[name], "p", 0.0) > 0.0:
        return "it has dropout: adapter.dropout=0 makes it fit"
    if hasattr(base.weight, "ds_id"):
        return "ZeRO-3 gathers its parts one by one"
    return None


def adapted_forward(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a forward that uses the op while the one adapter is on, and peft's own otherwise.

    Args:
        original: peft's forward of this layer.
    """

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        (name,) = self.lora_A
        base, a, b = self.get_base_layer(), self.lora_A[name], self.lora_B[name]
        own = args or kwargs or self.disable_adapters or self.merged or list(self.active_adapters) != [name]
        if own or b.bias is not None or base.weight.requires_grad:
            return original(x, *args, **kwargs)
        return lora_linear(x, base.weight, base.bias, a.weight, b.weight, self.scaling[name])

    return forward
