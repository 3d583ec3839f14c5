"""Tasks whose loss of one sample depends on the other samples of the global batch, as in contrastive learning."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from aitrain.tasks.task import Task


class GatheringTask(Task):
    """A task whose loss sees the outputs of all samples of the global batch, on any number of ranks.

    The trainer gathers what `outputs` and `marks` return, and asks for the loss once per step; `loss_sum` is not called
    while it trains. Memory holds one micro-batch (see `Module`).
    """

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the inputs of the loss, one row per row of the batch.

        Args:
            model: The model.
            batch: What `Samples.collate` made, on the device.

        Returns:
            `(M, ...)`, the same shape for every micro-batch.
        """

    @abstractmethod
    def marks(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return integers that the loss needs for each row: which rows are samples, and which are equal.

        Args:
            batch: What `Samples.collate` made, on the device.

        Returns:
            int64 `(M, K)`.
        """

    @abstractmethod
    def gathered_loss(self, outputs: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
        """Return the sum of the losses over the whole global batch.

        Args:
            outputs: Of all rows of all micro-batches of all ranks, `(G, ...)`; their order must not matter.
            marks: Of the same rows, `(G, K)`.
        """

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the loss of a single batch.

        Args:
            model: The model.
            batch: What `Samples.collate` made.
        """
        return self.gathered_loss(self.outputs(model, batch), self.marks(batch))
