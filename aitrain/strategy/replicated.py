"""Every rank holds the full model: one device, or data parallel over several."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from aitrain.strategy.state import LocalState


class SingleDevice(LocalState, SingleDeviceStrategy):  # type: ignore[misc]
    """One rank: no process group, no wrapper."""


class Replicated(LocalState, DDPStrategy):  # type: ignore[misc]
    """Distributed data parallel."""
