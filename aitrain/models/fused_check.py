"""Compares a fused model with its unfused version on a tiny batch, and turns fusing off if they disagree."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from aitrain.errors import ModelError

_log = logging.getLogger(__name__)
_ALLOWED = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Difference relative to 1 + the size of what is compared. 16-bit types: 5e-2, which rounding reaches and a wrong norm,
cap or scale exceeds."""


@dataclass
class Switch:
    """Turns all fused ops of one model off and on, to compare it with itself."""

    on: bool = True

    @contextmanager
    def turned_off(self) -> Iterator[None]:
        """Compute without fused ops inside the block."""
        self.on = False
        try:
            yield
        finally:
            self.on = True


@dataclass(frozen=True)
class FusedCheck:
    """Result of comparing a model with its unfused version.

    Attributes:
        difference: Of what was compared, relative to 1 + its size.
        allowed: The largest difference that rounding explains.
    """

    difference: float
    allowed: float

    @property
    def agrees(self) -> bool:
        """Whether the fused ops may stay on."""
        return self.difference <= self.allowed


@torch.no_grad()
def compared(
    switch: Switch,
    unfused: Callable[[], torch.Tensor],
    fused: Callable[[], torch.Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> FusedCheck:
    """Compute the same twice, with the same dropout; turn the fused ops off with a warning where the two differ.

    Args:
        switch: Of all fused ops of the model.
        unfused: Returns the result without fused ops.
        fused: Returns the same with fused ops, of the same shape.
        dtype: Of the weights; inside of autocast it is the arithmetic of autocast that decides what rounding explains.
        device: Where; its random numbers are left as they were.

    Returns:
        The comparison.

    Raises:
        ModelError: A fused op failed where the model as it came did not.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        with switch.turned_off():
            expected = unfused()
        torch.manual_seed(0)
        try:
            found = fused()
        except Exception as error:  # a compiler, a driver, a kernel: whatever it is, the user can continue without
            reason = f"the fused ops fail on a tiny batch: {type(error).__name__}: {error}"
            raise ModelError(f"{reason}; write model.fused_ops=off to train without them") from error
    size = 1 + expected.double().abs().max()
    difference = float((found.double() - expected.double()).abs().max() / size)
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    check = FusedCheck(difference if difference == difference else float("inf"), _ALLOWED.get(dtype, 5e-2))
    if not check.agrees:
        switch.on = False
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            _log.warning(
                "fused ops: on a tiny batch the result differs by %.1e from the unfused model (limit %.1e), so "
                "they are turned off for this run. Please report the model; model.fused_ops=off silences this",
                check.difference,
                check.allowed,
            )
    return check


def check_outputs(model: Any, **batch: Any) -> FusedCheck:
    """Compare all floating outputs of a fused model with those of its unfused version.

    Args:
        model: A Hugging Face model of any kind, after `fuse`.
        batch: What it takes, by name: a tiny batch.

    Returns:
        The comparison; the fused ops are off where it does not agree.

    Raises:
        ModelError: The model is not fused, or a fused op fails.
    """
    switch = getattr(model, "fused_switch", None)
    if not isinstance(switch, Switch):
        raise ModelError(f"{type(model).__name__} is not fused: call fuse(model) first")
    first = next(model.parameters())

    def run() -> torch.Tensor:
        outputs = [out for out in model(**batch).values() if torch.is_tensor(out) and out.is_floating_point()]
        return torch.cat([out.flatten().double() for out in outputs])

    return compared(switch, run, run, first.dtype, first.device)
