"""LoRA layers of peft through our ops if those compute the same: alone, with their neighbours, or as an MLP."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from aitrain.ops.lora.gated import lora_mlp
from aitrain.ops.lora.op import lora_linears, products_in
from aitrain.ops.lora.projection import Projection
from aitrain.ops.nf4.packed import Packed4bit

FOUR_BIT = "Linear4bit"
"""bitsandbytes' layer, and peft's around it; both by name, because bitsandbytes need not be installed."""

SIDE_BY_SIDE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
"""Layers of an attention module that take the same tensor."""

OTHER_INPUTS = {"key_value_states", "encoder_hidden_states"}
"""Arguments of attention modules whose keys and values may come from somewhere else."""


def is_adapted(module: nn.Module) -> bool:
    """Whether the module is a linear layer of peft with an adapter."""
    return isinstance(module, LoraLinear) or (isinstance(module, LoraLayer) and _is_4_bit(module))


def why_not(module: nn.Module) -> str | None:
    """Return why the op never fits this layer, or None if it does.

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
    if type(base) is not nn.Linear and not _is_4_bit(base):
        return f"its base layer is a {type(base).__name__}"
    if getattr(layer.lora_dropout[name], "p", 0.0) > 0.0:
        return "it has dropout: adapter.dropout=0 makes it fit"
    if hasattr(base.weight, "ds_id"):
        return "ZeRO-3 gathers its parts one by one"
    return None


def projection_of(module: nn.Module, x: torch.Tensor) -> Projection | None:
    """Return what a layer computes from this input now; None if its own forward must run.

    That is when adapters are off, merged, several or trained with their base, where weights are sharded or a hook
    brings them, and where a 4-bit layer computes in another type than its input's.

    Args:
        module: A linear layer, with peft's adapter or frozen.
        x: Its input.
    """
    layer: Any = module
    if not is_adapted(module):
        return _projection(module, x, None, None, 1.0) if type(module) is nn.Linear else None
    if why_not(module) is not None or layer.disable_adapters or layer.merged:
        return None
    (name,) = layer.lora_A
    a, b = layer.lora_A[name], layer.lora_B[name]
    if list(layer.active_adapters) != [name] or b.bias is not None or _hooked(a) or _hooked(b):
        return None
    return _projection(layer.get_base_layer(), x, a.weight, b.weight, layer.scaling[name])


def _projection(
    base: Any, x: torch.Tensor, a: torch.Tensor | None, b: torch.Tensor | None, scaling: float
) -> Projection | None:
    weight, bias = base.weight, base.bias
    if _hooked(base) or weight.requires_grad or (bias is not None and bias.requires_grad):
        return None
    if any(hasattr(part, "ds_id") or hasattr(part, "placements") for part in (weight, bias, a, b)):
        return None  # a part of it elsewhere: ZeRO-3, DTensor
    if type(base) is nn.Linear:
        return Projection(weight, bias, a, b, scaling)
    packed = Packed4bit.of(weight)
    if packed is None or getattr(base, "compute_dtype", None) not in (None, products_in(x)):
        return None
    return Projection(packed, bias, a, b, scaling)


def _is_4_bit(module: nn.Module) -> bool:
    return any(kind.__name__ == FOUR_BIT for kind in type(module).__mro__)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_pre_hooks or module._forward_hooks or hasattr(module, "_hf_hook"))


def adapted_forward(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a forward that uses the op while the one adapter is on, and peft's own otherwise.

    Args:
        original: peft's forward of this layer.
    """

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs:
            return original(x, *args, **kwargs)
        shared = self.__dict__.get("fused_neighbours")
        out = None if shared is None else shared.take(self, x)
        if out is not None:
            return out
        projection = projection_of(self, x)
        return original(x) if projection is None else lora_linears(x, [projection])[0]

    return forward


def adapted_mlp(plain: Callable[..., torch.Tensor], activation: str) -> Callable[..., torch.Tensor]:
    """Return a forward of a gated MLP that keeps x, gate and up only, while one of its layers has an adapter.

    Args:
        plain: Forward (taking the module first) for when that does not fit.
        activation: Of `aitrain.ops.lora.gated.GATES`.
    """

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        packed = hasattr(self, "gate_up_proj")
        names = ("gate_up_proj", "down_proj") if packed else ("gate_proj", "up_proj", "down_proj")
        found = []
        for name in names:
            layer = getattr(self, name)
            projection = None if _hooked(layer) else projection_of(layer, x)
            if projection is None:
                return plain(self, x)
            found.append(projection)
        if all(projection.a is None for projection in found):
            return plain(self, x)
        return lora_mlp(x, found[0], None if packed else found[1], found[-1], activation)

    return forward


def share_input(attention: nn.Module) -> int:
    """Let the adapted query, key and value layers of an attention module be computed together, by the first one called.

    Only inside the module's own forward, and only where they are called on the very same tensor, unchanged; else each
    computes its own. Nothing is kept behind the forward. The layers must run `adapted_forward`.

    Args:
        attention: Any module.

    Returns:
        How many layers take part: 0, 2 or 3.
    """
    if OTHER_INPUTS & set(inspect.signature(type(attention).forward).parameters):
        return 0
    for names in SIDE_BY_SIDE:
        layers = [getattr(attention, name, None) for name in names]
        fit = [each for each in layers if isinstance(each, nn.Module) and is_adapted(each) and why_not(each) is None]
        if len(fit) > 1:
            shared = Neighbours(fit)
            for each in fit:
                each.__dict__["fused_neighbours"] = shared
            attention.register_forward_pre_hook(shared.open)
            attention.register_forward_hook(shared.close, always_call=True)
            return len(fit)
    return 0


class Neighbours:
    """Adapted layers of one input: outputs computed by the first call for the others, until their module's forward
    ends.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = list(layers)
        self._is_open = False
        self._input: torch.Tensor | None = None
        self._version = 0
        self._outputs: list[torch.Tensor | None] = []

    def open(self, *_: Any) -> None:
        """Start of the module's forward."""
        self.close()
        self._is_open = True

    def close(self, *_: Any) -> None:
        """End of the forward: drop unused outputs."""
        self._is_open, self._input, self._outputs = False, None, []

    def take(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
        """Return a layer's output, each once; None if the layer has to compute its own.

        Args:
            layer: One of the layers.
            x: Its input.
        """
        if not self._is_open:
            return None
        if self._input is None:
            self._input, self._version = x, _version(x)
            found = [None if _hooked(each) else projection_of(each, x) for each in self._layers]
            projections = [projection for projection in found if projection is not None]
            if len(projections) == len(found):
                self._outputs = list(lora_linears(x, projections))
        if self._outputs and x is self._input and _version(x) == self._version:
            for at, each in enumerate(self._layers):
                if each is layer:
                    out, self._outputs[at] = self._outputs[at], None
                    return out
        return None


def _version(x: torch.Tensor) -> int:
    """Return how often the tensor was written to; 0 if that is not counted."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version
