"""The only LightningModule of aitrain: it scales a task's loss by the weight of the global batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from aitrain.optim.build import build_optimizer
from aitrain.tasks.gathering import GatheringTask
from aitrain.tasks.task import Measured, Task


@dataclass(frozen=True)
class Held:
    """State that a micro-batch of a gathering task keeps until its backward pass."""

    gradient: torch.Tensor
    """Of the loss, by each of its outputs."""

    host: torch.Tensor
    """State of torch's random generator before it."""

    device: torch.Tensor | None
    """The same of the GPU."""

    def restore(self, device: torch.device) -> None:
        """Restore the random generators to their state at the first computation of the outputs.

        Args:
            device: Of the model.
        """
        torch.set_rng_state(self.host)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device, device)


def _generators(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


class Module(pl.LightningModule):
    """A task's model in training.

    Args:
        task: What is trained.
        data_size: Ranks that see different samples.
        accumulation: Micro-batches per rank and optimizer step.
        data_rank: This rank among them.
        gather: Returns a tensor's rows of all ranks; a task that gathers needs it.
    """

    def __init__(
        self,
        task: Task,
        data_size: int,
        accumulation: int,
        data_rank: int = 0,
        gather: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows,
    ) -> None:
        super().__init__()
        self._data_rank, self._gather = data_rank, gather
        self._held: list[Held] = []
        self.task = task
        self.model: nn.Module | None = None
        self._shares = data_size * accumulation
        self.loss_sum: torch.Tensor | None = None

    @property
    def built(self) -> nn.Module:
        """The model; available once the strategy has built it."""
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
        if isinstance(self.task, GatheringTask):
            return self._gathered_step(self.task, batch) * (self._shares / batch["global_weight"])
        loss_sum = self.task.loss_sum(self.built, batch)
        self.loss_sum = loss_sum.detach() if self.loss_sum is None else self.loss_sum + loss_sum.detach()
        return loss_sum * (self._shares / batch["global_weight"])

    def _gathered_step(self, task: GatheringTask, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return a scalar whose gradient is this micro-batch's part of the gradient of the whole global batch's loss.

        Before the first micro-batch of a step, all of this rank's micro-batches go through the model without
        gradients; the outputs of all ranks make the loss, and its gradient by each output is kept. Then every
        micro-batch goes through once more, with the same random draws, and its outputs times those gradients are what
        is differentiated. So the loss sees the whole global batch, and memory holds one micro-batch.

        Source: Gao et al., arXiv:2101.06983 (GradCache).
        """
        if "share" in batch:
            self._held = self._look_ahead(task, batch["share"])
        held = self._held.pop(0)
        held.restore(self.device)
        return (task.outputs(self.built, batch).float() * held.gradient).sum()

    def _look_ahead(self, task: GatheringTask, share: list[Mapping[str, Any]]) -> list[Held]:
        states, outputs = [], []
        with torch.no_grad():
            for part in share:
                states.append(_generators(self.device))
                outputs.append(task.outputs(self.built, part).float())
        own = torch.cat(outputs)
        # rank by rank; the loss is a sum over rows and sees no order
        rows = self._gather(own).requires_grad_()
        marks = self._gather(torch.cat([task.marks(part) for part in share]))
        with torch.enable_grad():
            loss = task.gathered_loss(rows, marks)
        (gradient,) = torch.autograd.grad(loss, rows)
        parts = len(rows) // len(own)
        # every rank has computed the same loss of the whole global batch; the log adds up what the ranks hold
        self.loss_sum = loss.detach() / parts
        first = self._data_rank * len(own)
        pieces = gradient[first : first + len(own)].split([len(out) for out in outputs])
        return [Held(piece, *state) for piece, state in zip(pieces, states, strict=True)]

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> Measured:  # type: ignore[override]
        """Measure one batch of held-out data.

        Args:
            batch: What the samples' `collate` made.
            batch_idx: Number of the batch.
        """
        return self.task.measure(self.built, batch)

    def configure_model(self) -> None:
        """Build the model once, in the strategy's build context (sharded while it loads, if the strategy supports
        it).
        """
        if self.model is not None:
            return
        building: Callable[[], AbstractContextManager[None]] = getattr(self.trainer.strategy, "building", nullcontext)
        with building():
            self.model = self.task.build()
        self.task.finish(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the recipe's optimizer over what is trained."""
        return build_optimizer(self.task.config.optim, self.built.named_parameters(), self.device.type)
