"""A benchmark case: an op at one shape, its inputs, the exact answer, and the providers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

Inputs = dict[str, torch.Tensor]
Outputs = tuple[torch.Tensor, ...]
Function = Callable[[Inputs], Outputs]
Trial = Callable[[Function, Inputs], Outputs]

TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-4}
"""Largest relative error (2-norms) of any output or gradient that still counts as right.

Five roundings of bf16 (2^-8 each), five of fp16 (2^-10), and for fp32 sums of a million terms in any order: beyond this
something else was computed. Errors within it are shown in the table.
"""


@dataclass(frozen=True)
class Provider:
    """An implementation of the op."""

    name: str
    load: Callable[[], Function]
    """Imports what is needed (ImportError = absent) and returns outputs of inputs, differentiable where asked for."""

    package: str | None = None
    """The distribution whose version is in the report."""

    overwrites: tuple[str, ...] = ()
    """Inputs it writes into, of which it gets copies; they are filled anew before each launch."""

    tolerance: float | None = None
    """Instead of the case's, where less precision is what the provider is for (8-bit states)."""

    compiles: bool = False
    """Whether it takes many seconds before the first result."""


@dataclass(frozen=True)
class Work:
    """Minimum work of any implementation."""

    bytes: float = 0.0
    """To read from and write to the device's memory."""

    flops: float = 0.0
    """In matrix products."""


@dataclass(frozen=True)
class Case:
    """An op at one shape."""

    op: str
    shape: str
    inputs: Callable[[torch.device], Inputs]
    exact: Callable[[Inputs], Outputs]
    """Outputs, then gradients of the leaves, in more precision than any provider has."""

    providers: Sequence[Provider]
    """Ours first."""

    work: Mapping[str, Work]
    """Per mode: `forward` (without gradients), `backward`, `both`, or `step` (no gradients at all)."""

    leaves: tuple[str, ...] = ()
    """Inputs whose gradients are wanted."""

    upstream: tuple[str, ...] = ()
    """Inputs that are the gradients of the outputs; none = the output is a loss."""

    trial: Trial | None = None
    """Instead of one call and its gradients: what the gate looks at."""


def gradients(case: Case, inputs: Inputs, outputs: Outputs) -> Outputs:
    """Return the gradients of a case's leaves.

    Args:
        case: Names leaves and upstream gradients.
        inputs: Of the call.
        outputs: What the call returned.
    """
    upstream = [inputs[name] for name in case.upstream] or [torch.ones_like(outputs[0])]
    leaves = [inputs[name] for name in case.leaves]
    return torch.autograd.grad(outputs[: len(upstream)], leaves, upstream)


def try_out(case: Case, function: Function, inputs: Inputs) -> Outputs:
    """Return what the gate compares: the case's trial, or outputs and gradients of one call.

    Args:
        case: What is compared.
        function: Who computes it.
        inputs: Its own; leaves require gradients.
    """
    if case.trial is not None:
        return case.trial(function, inputs)
    outputs = function(inputs)
    if not case.leaves:
        return outputs
    found = tuple(output.detach().clone() for output in outputs)  # a rival may overwrite its output in its backward
    return (*found, *gradients(case, inputs, outputs))


def own_inputs(case: Case, inputs: Inputs, overwrites: Sequence[str]) -> Inputs:
    """Return inputs for one provider: shared, but for those it overwrites.

    Args:
        case: Names the leaves.
        inputs: The shared ones.
        overwrites: Names of those to copy.
    """
    mine = {name: value.clone() if name in overwrites else value.detach() for name, value in inputs.items()}
    for name in case.leaves:
        mine[name].requires_grad_(True)
    return mine


def exact_by_autograd(formula: Function, leaves: Sequence[str], upstream: Sequence[str]) -> Callable[[Inputs], Outputs]:
    """Return the exact answer of a formula in plain PyTorch: computed in float64.

    Args:
        formula: Outputs of inputs, in whatever type they have.
        leaves: As in the case.
        upstream: As in the case.
    """

    def exact(inputs: Inputs) -> Outputs:
        wide = {n: v.detach().double() if v.is_floating_point() else v for n, v in inputs.items()}
        for name in leaves:
            wide[name].requires_grad_(True)
        outputs = formula(wide)
        above = [wide[name] for name in upstream] or [torch.ones_like(outputs[0])]
        found = torch.autograd.grad(outputs[: len(above)], [wide[name] for name in leaves], above)
        return (*(output.detach() for output in outputs), *found)

    return exact


def plain(formula: Function) -> Iterator[Provider]:
    """Yield the providers that every op has: eager PyTorch and torch.compile on the same formula.

    Args:
        formula: Outputs of inputs, as a model's source would write it.
    """
    yield Provider("eager", lambda: formula)
    yield Provider("compile", lambda: torch.compile(formula, dynamic=False), compiles=True)


def tuned(formula: Function) -> Provider:
    """Return torch.compile when it may try out many variants.

    Args:
        formula: Outputs of inputs.
    """
    mode = "max-autotune-no-cudagraphs"
    return Provider("compile, autotuned", lambda: torch.compile(formula, dynamic=False, mode=mode), compiles=True)
