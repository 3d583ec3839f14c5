"""Puts aitrain's fused ops into a Hugging Face model, reports what was replaced, and checks the result."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, Literal

import torch
from torch import nn

from aitrain.models.fused_adapter import adapted_forward, adapted_mlp, is_adapted, share_input, why_not
from aitrain.models.fused_check import Switch
from aitrain.models.fused_head import FusedLoss
from aitrain.models.fused_layer import summed_forward
from aitrain.models.fused_rope import rotated_forward
from aitrain.ops.glu.op import geglu, swiglu
from aitrain.ops.layer_norm.op import layer_norm
from aitrain.ops.rms_norm.op import rms_norm

LLAMA_NORMS = {f"{name}RMSNorm" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "SmolLM3", "Granite")}
"""Their normalised value is cast back before the weight multiplies it."""

WIDE_NORMS = {"Olmo2RMSNorm": 0.0, "GemmaRMSNorm": 1.0, "Gemma2RMSNorm": 1.0, "Gemma3RMSNorm": 1.0}
"""All in float32, cast last; the number is added to the weight."""

GATED_MLPS = {
    f"{name}MLP"
    for name in (
        "Llama",
        "Mistral",
        "Qwen2",
        "Qwen3",
        "Gemma",
        "Gemma2",
        "Gemma3",
        "Olmo",
        "Olmo2",
        "SmolLM3",
        "Granite",
    )
}
PACKED_MLPS = {"Phi3MLP"}
"""Gate and up in one matrix."""

_ACTIVATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "SiLU": swiglu,
    "SiLUActivation": swiglu,
    "GELUTanh": lambda gate, up: geglu(gate, up, approximate="tanh"),
    "GELUActivation": lambda gate, up: geglu(gate, up, approximate="none"),
}

_ADAPTED_GATES = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUTanh": "gelu_tanh",
    "GELUActivation": "gelu",
}
"""The same, by their names in `lora_mlp`."""


@dataclass(frozen=True)
class FuseReport:
    """What was replaced and what was not.

    Attributes:
        replaced: `class -> op` and how many of them.
        left: What was not replaced, with the reason.
    """

    replaced: dict[str, int] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return one line per kind of module."""
        done = [f"{count} x {what}" for what, count in self.replaced.items()]
        return done + [f"{what}: not fused, {why}" for what, why in self.left.items()]


def fuse(model: nn.Module) -> FuseReport:
    """Replace what a fused op computes, in place; parameters, names and checkpoints stay as they are.

    A causal model checks itself when its fused loss is first computed: its loss on one tiny batch, fused and unfused,
    must agree, or the fused ops are turned off again with a warning. For other models `check_outputs` does the same.

    Args:
        model: A Hugging Face model, with or without peft's adapter around it.

    Returns:
        What was replaced.
    """
    inner = causal_model(model)
    switch, replaced, left = Switch(), Counter[str](), dict[str, str]()
    inner.fused_switch = switch  # type: ignore[assignment]
    for module in inner.modules():
        kind = type(module).__name__
        forward = _replacement(module, kind, left)
        if forward is not None:
            _patch(module, forward[1], switch)
            replaced[f"{kind} -> {forward[0]}"] += 1
        together = share_input(module)
        if together:
            replaced[f"{kind}'s {together} adapted inputs -> lora_linears"] += 1
    loss = FusedLoss.of(inner, switch)
    if isinstance(loss, str):
        left["loss of the head"] = loss
    else:
        loss.put_into(inner)
        replaced[f"{type(inner).__name__}'s loss -> linear_cross_entropy"] = 1
    return FuseReport(dict(replaced), left)


def causal_model(model: nn.Module) -> nn.Module:
    """Return the Hugging Face model inside peft's wrapper, or the model itself."""
    base: Any = getattr(model, "get_base_model", None)
    inner = model if base is None else base()
    assert isinstance(inner, nn.Module)
    return inner


def has_fused_loss(model: nn.Module) -> bool:
    """Whether the model takes `fused_targets` and then returns a loss."""
    return isinstance(getattr(causal_model(model), "fused_loss", None), FusedLoss)


def _patch(module: nn.Module, forward: Callable[..., Any], switch: Switch) -> None:
    original = module.forward

    @functools.wraps(original)
    def either(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs) if switch.on else original(*args, **kwargs)

    module.forward = MethodType(either, module)  # type: ignore[method-assign]


def _replacement(module: nn.Module, kind: str, left: dict[str, str]) -> tuple[str, Callable[..., Any]] | None:
    """Return the op's name and the module's new forward, or None; notes why, when an op could have been meant."""
    if kind in LLAMA_NORMS:
        return "rms_norm", _rms_norm("llama", 0.0)
    if kind in WIDE_NORMS:
        return "rms_norm", _rms_norm("gemma", WIDE_NORMS[kind])
    if kind == "OlmoLayerNorm":
        return "layer_norm", _bare_layer_norm
    if type(module) is nn.LayerNorm:
        if len(module.normalized_shape) == 1:
            return "layer_norm", _layer_norm
        left[kind] = f"it normalises {len(module.normalized_shape)} dimensions"
        return None
    if is_adapted(module):
        reason = why_not(module)
        if reason is None:
            return "lora_linear", adapted_forward(module.forward)
        left[f"{kind} of {type(module).__module__.split('.')[0]}"] = reason
        return None
    if kind in GATED_MLPS or kind in PACKED_MLPS:
        act: Any = getattr(module, "act_fn", None) or getattr(module, "activation_fn", None)
        gated = _ACTIVATIONS.get(type(act).__name__)
        if gated is None:
            left[kind] = f"its activation is {type(act).__name__}"
            return None
        name = "swiglu" if gated is swiglu else "geglu"
        plain = (_gated_mlp if kind in GATED_MLPS else _packed_mlp)(gated)
        if any(is_adapted(layer) for layer in module.children()):
            return f"{name}, lora_mlp", adapted_mlp(plain, _ADAPTED_GATES[type(act).__name__])
        return name, plain
    if kind.endswith(("RMSNorm", "MLP", "LayerNorm")):
        known_shape = kind.endswith("Norm") or hasattr(module, "gate_proj")
        left[kind] = "the class is unknown" if known_shape else "it has no gate"
        return None
    summed = summed_forward(module)
    if summed is not None:
        return "rms_norm with the residual sum", summed
    rotated = rotated_forward(module)
    if isinstance(rotated, str):
        left[kind] = rotated
        return None
    return rotated and ("rope_qk", rotated)


def _rms_norm(cast: Literal["llama", "gemma"], offset: float) -> Callable[..., Any]:
    def forward(self: Any, hidden: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        eps = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
        return rms_norm(hidden, self.weight, eps, residual, offset, cast)

    return forward


def _layer_norm(self: nn.LayerNorm, hidden: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = layer_norm(hidden, self.weight, self.bias, self.eps)
    return out


def _bare_layer_norm(self: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = layer_norm(hidden, None, None, 1e-5)
    return out


def _gated_mlp(gated: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))
        return out

    return forward


def _packed_mlp(gated: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        out: torch.Tensor = self.down_proj(gated(gate, up))
        return out

    return forward
