"""Rotary embedding of a Hugging Face attention module: found, compared with ours, replaced for this module alone."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn

from aitrain.ops.rope.op import rope_qk

FUNCTION = "apply_rotary_pos_emb"
"""Transformers' name for it, in every modeling file."""


def rotated_forward(module: nn.Module) -> Callable[..., Any] | str | None:
    """Return a forward that rotates queries and keys in one launch.

    Transformers calls the rotation by its global name; the forward is built again with a name of its own instead, so
    that other models of the process keep theirs.

    Args:
        module: Any module.

    Returns:
        The forward (taking the module first), the reason why not, or None if nothing is rotated.
    """
    forward = inspect.unwrap(type(module).forward)
    if not isinstance(forward, FunctionType) or FUNCTION not in forward.__code__.co_names:
        return None
    theirs = forward.__globals__.get(FUNCTION)
    if forward is not type(module).forward:
        return "its forward is decorated"
    if theirs is None or not _rotates_halves(theirs):
        return f"its {FUNCTION} computes something other than rope_qk"
    own = dict(forward.__globals__)
    own[FUNCTION] = _rotate
    made = FunctionType(forward.__code__, own, forward.__name__, forward.__defaults__, forward.__closure__)
    made.__kwdefaults__ = forward.__kwdefaults__
    return made


def _rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    return rope_qk(q, k, cos, sin, heads_dim=unsqueeze_dim)


@functools.cache
def _rotates_halves(theirs: Callable[..., Any]) -> bool:
    """Whether a rotation takes our arguments and returns our results, on random input."""
    if list(inspect.signature(theirs).parameters) != ["q", "k", "cos", "sin", "unsqueeze_dim"]:
        return False
    random = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 3, 8, generator=random, device="cpu") for heads in (3, 1))
    angles = torch.randn(2, 3, 4, generator=random, device="cpu").repeat(1, 1, 2)
    with torch.no_grad():
        for here in (1, 2):
            given = (q.transpose(1, here), k.transpose(1, here), angles.cos(), angles.sin(), here)
            for right, ours in zip(theirs(*given), _rotate(*given), strict=True):
                if right.shape != ours.shape or not torch.allclose(right, ours, atol=2e-6, rtol=0.0):
                    return False
    return True
