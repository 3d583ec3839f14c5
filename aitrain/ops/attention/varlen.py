"""Documents through FlashAttention's kernels: the packages flash-attn 3 and 2, and the copy inside PyTorch."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from aitrain.ops.attention.documents import Documents
from aitrain.ops.attention.pattern import Pattern

FLASH = {3: ("flash_attn_interface", "flash_attn_varlen_func"), 2: ("flash_attn", "flash_attn_varlen_func")}
"""Generation -> module and function. The third has kernels for Hopper only."""
TORCHS = ("torch.nn.attention.varlen", "varlen_attn")


@cache
def found(module: str, name: str) -> tuple[Callable[..., Any] | None, str]:
    """Import a function.

    Args:
        module: Its module.
        name: Its name.

    Returns:
        The function, or None and why it cannot be imported.
    """
    try:
        return getattr(importlib.import_module(module), name), ""
    except (ImportError, AttributeError, OSError, RuntimeError) as error:  # a wheel for another torch fails to load
        return None, f"{module}.{name} cannot be imported ({str(error).splitlines()[0] if str(error) else error!r})"


def takes(function: Callable[..., Any], *names: str) -> bool:
    """Return whether a function has these parameters.

    Args:
        function: Any function with a signature.
        names: Names of parameters.
    """
    return set(names) <= set(inspect.signature(function).parameters)


def flash(
    generation: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, pattern: Pattern
) -> torch.Tensor:
    """Attend within documents by the flash-attn package.

    Args:
        generation: Of the package, 2 or 3.
        q: Queries, shape (T, H, D), float16 or bfloat16 on a GPU.
        k: Keys, shape (T, Hk, D).
        v: Values, shape (T, Hk, D).
        documents: The documents of the T tokens.
        pattern: What a query sees.

    Returns:
        Shape (T, H, D).

    Raises:
        ImportError: The package is not there, which `backend_for` finds out beforehand.

    Source:
        https://github.com/Dao-AILab/flash-attention: `flash_attn_varlen_func` of flash_attn/flash_attn_interface.py and
        hopper/flash_attn_interface.py.
    """
    function, fault = found(*FLASH[generation])
    if function is None:
        raise ImportError(fault)
    bounds, longest = documents.cu_seqlens, documents.max_seqlen
    options: dict[str, Any] = {
        "softmax_scale": pattern.scale,
        "causal": pattern.causal,
    }
    if pattern.window is not None:
        options["window_size"] = pattern.sides()
    if torch.are_deterministic_algorithms_enabled():
        options["deterministic"] = True  # else its backward pass adds up in any order
    if pattern.softcap is not None:
        options["softcap"] = pattern.softcap
    if pattern.dropout:
        options["dropout_p"] = pattern.dropout
    out = function(q, k, v, bounds, bounds, longest, longest, **options)
    attended: torch.Tensor = out[0] if isinstance(out, tuple) else out  # some give the log-sum-exp as well
    return attended


def torchs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, pattern: Pattern) -> torch.Tensor:
    """Attend within documents by the kernels in PyTorch.

    Args:
        q: Queries, shape (T, H, D), float16 or bfloat16 on a GPU.
        k: Keys, shape (T, Hk, D).
        v: Values, shape (T, Hk, D).
        documents: The documents of the T tokens.
        pattern: What a query sees, without cap and dropout.

    Returns:
        Shape (T, H, D).

    Raises:
        ImportError: This PyTorch has no such function, which `backend_for` finds out beforehand.

    Source:
        https://docs.pytorch.org/docs/stable/nn.attention.varlen.html
    """
    function, fault = found(*TORCHS)
    if function is None:
        raise ImportError(fault)
    bounds, longest = documents.cu_seqlens, documents.max_seqlen
    options: dict[str, Any] = {}
    if takes(function, "window_size"):
        options["window_size"] = pattern.sides()
    else:
        options["is_causal"] = pattern.causal  # the first version, in PyTorch 2.10
    if pattern.scale is not None:
        options["scale"] = pattern.scale
    if q.shape[1] != k.shape[1]:
        options["enable_gqa"] = True
    attended: torch.Tensor = function(q, k, v, bounds, bounds, longest, longest, **options)
    return attended
