"""The one LightningModule of the house: it scales a task's loss by the weight of the global batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from aitrain.optim.build import build_optimizer
from aitrain.tasks.task import Measured, Task


class Module(pl.LightningModule):
    """A task's model under training.

    Args:
        task: What is trained.
        data_size: Ranks that see different samples.
        accumulation: Micro-batches per rank and optimizer step.
    """

    def __init__(self, task: Task, data_size: int, accumulation: int) -> None:
        super().__init__()
        self.task = task
        self.model: nn.Module | None = None
        self._shares = data_size * accumulation
        self.loss_sum: torch.Tensor | None = None

    @property
    def built(self) -> nn.Module:
        """The model; it is there once the strategy has built it."""
        assert self.model is not None, "configure_model has not run"
        return self.model

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> torch.Tensor:
        """Return the micro-batch's share of the global batch's mean loss.

        The sum of this micro-batch's losses is divided by the weight of the *whole* global batch. Lightning divides
        what we return by the accumulation count and every strategy averages gradients over the ranks; multiplying by
        both undoes it: the gradient is exactly that of the mean over the global batch.

        Args:
            batch: What the samples' `collate` made, and `global_weight`, a number.
            batch_idx: Number of the micro-batch.

        Returns:
            Scalar to differentiate.
        """
        loss_sum = self.task.loss_sum(self.built, batch)
        self.loss_sum = loss_sum.detach() if self.loss_sum is None else self.loss_sum + loss_sum.detach()
        return loss_sum * (self._shares / batch["global_weight"])

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> Measured:  # type: ignore[override]
        """Measure one batch of held-out data.

        Args:
            batch: What the samples' `collate` made.
            batch_idx: Number of the batch.
        """
        return self.task.measure(self.built, batch)

    def configure_model(self) -> None:
        """Build the model once, in the strategy's way (sharded while it loads, where the strategy can)."""
        if self.model is not None:
            return
        building: Callable[[], AbstractContextManager[None]] = getattr(self.trainer.strategy, "building", nullcontext)
        with building():
            self.model = self.task.build()
        self.task.finish(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the recipe's optimizer over what is trained."""
        return build_optimizer(self.task.config.optim, self.built.named_parameters(), self.device.type)
