"""Makes ops known to PyTorch's dispatcher, so that autograd, torch.compile and fake tensors understand them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("aitrain", "FRAGMENT")


def register(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Any:
    """Register one op under `torch.ops.aitrain`.

    In eager code call the op's `torch.autograd.Function` instead of what this returns: it costs a tenth of the host
    time. Compiled code (`torch.compiler.is_compiling()`) needs the registered op: the compiler does not look into it.

    Args:
        schema: `name(Tensor x, ...) -> Tensor`, PyTorch's schema language.
        run: The implementation on CPU and GPU tensors.
        fake: Shapes and types of the outputs, on fake tensors.
        backward: Gradients, as `torch.library.register_autograd` takes them; None = not differentiable.
        setup_context: What the backward keeps.

    Returns:
        The op.

    Source:
        https://docs.pytorch.org/docs/stable/library.html
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"aitrain::{name}", fake, lib=_LIBRARY)
    if "!" not in schema:  # an op that writes into its arguments has no gradient, which the dispatcher itself says
        gradients = backward or _refuse(name)
        torch.library.register_autograd(f"aitrain::{name}", gradients, setup_context=setup_context, lib=_LIBRARY)
    return getattr(torch.ops.aitrain, name).default


def _refuse(name: str) -> Callable[..., Any]:
    def backward(*_: Any) -> Any:
        raise RuntimeError(
            f"aitrain::{name} has no backward pass: call it under torch.no_grad() or on detached tensors"
        )

    return backward
