"""The residual sum in the middle of a decoder layer, computed in one pass with the following norm."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

NORM_FIRST = {f"{name}DecoderLayer" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3")}
"""x + attention(norm(x)), then x + mlp(norm(x))."""

NORM_AROUND = {"Gemma2DecoderLayer", "Gemma3DecoderLayer"}
"""As above, with another norm after attention and mlp."""


def summed_forward(module: nn.Module) -> Callable[..., Any] | None:
    """Return a forward that passes the sum to the norm; None if the layer is unknown.

    Args:
        module: Any module. The norms in it must be fused: they are called with the residual.
    """
    kind = type(module).__name__
    if kind in NORM_FIRST and isinstance(getattr(module, "mlp", None), nn.Module):
        return _norm_first
    return _norm_around if kind in NORM_AROUND else None


def _norm_first(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    attended, _ = self.self_attn(self.input_layernorm(hidden_states), **_named(self, args, kwargs))
    normed, total = _sum_and_norm(self.post_attention_layernorm, attended, hidden_states)
    out: torch.Tensor = total + self.mlp(normed)
    return out


def _norm_around(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    attended, _ = self.self_attn(self.input_layernorm(hidden_states), **_named(self, args, kwargs))
    attended = self.post_attention_layernorm(attended)
    normed, total = _sum_and_norm(self.pre_feedforward_layernorm, attended, hidden_states)
    out: torch.Tensor = total + self.post_feedforward_layernorm(self.mlp(normed))
    return out


def _sum_and_norm(norm: nn.Module, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if x.dtype != residual.dtype:  # under autocast the residual stream is float32 and what is added is not
        total = residual + x
        return norm(total), total
    normed, total = norm(x, residual)
    return normed, total


def _named(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments by name: attention takes them in another order than the layer does."""
    if not args:
        return kwargs
    names = list(inspect.signature(type(layer).forward).parameters)[2:]  # after self and hidden_states
    return dict(zip(names, args, strict=False)) | kwargs
