"""Batch normalisation with the statistics of the base model instead of those of the micro-batch."""

from __future__ import annotations

from typing import Any

from torch import nn


class FrozenBatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation that stays in evaluation mode; scale and shift are trained."""

    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode.

        Args:
            mode: Has no effect.
        """
        return super().train(False)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """The same for images."""

    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode.

        Args:
            mode: Has no effect.
        """
        return super().train(False)


FROZEN: dict[type, type] = {nn.BatchNorm1d: FrozenBatchNorm1d, nn.BatchNorm2d: FrozenBatchNorm2d}


def freeze_statistics(model: nn.Module) -> int:
    """Freeze the statistics of every batch normalisation of a model; names and values of its state are unchanged.

    Args:
        model: The model, changed in place.

    Returns:
        How many there are.
    """
    found = [module for module in model.modules() if type(module) in FROZEN]
    for module in found:
        module.__class__ = FROZEN[type(module)]
        module.train(False)
    return len(found)
