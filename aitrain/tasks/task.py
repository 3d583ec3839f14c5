"""The interface between the trainer and tasks: the trainer knows only this class, and no task by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from aitrain.config import RunConfig
from aitrain.config.custom import UserClass, typed_options
from aitrain.config.model import ModelKind
from aitrain.data.samples import Samples, Splits
from aitrain.dist.group import Group
from aitrain.errors import RecipeError
from aitrain.models.weights import with_weights
from aitrain.tasks.metric import Metric

Watch = Callable[[], None]
"""Called between the parts of long work; an exception that it raises ends the work, and partial results are removed."""


def unwatched() -> None:
    """Do nothing: a `Watch` that never interrupts."""


@dataclass
class Measured:
    """Measurements of a model on one batch, or on all of them."""

    sums: torch.Tensor
    """float64 `(K,)`, added over batches and ranks. The first two are the sum of the losses and of their weights."""

    rows: torch.Tensor | None = None
    """One row per sample of the batch, `(M, ...)`, where a metric needs all of them at once; else None."""


@dataclass(frozen=True)
class Note:
    """Messages of a task when training starts."""

    event: str
    facts: dict[str, Any]
    line: str


@dataclass(frozen=True)
class Room:
    """Memory for one micro-batch on one device."""

    bytes_free: int
    """Memory left after weights, gradients and optimizer state, in bytes."""

    precision_bytes: int
    """Bytes of one activation: 4 in fp32, 2 in bf16."""


@dataclass(frozen=True)
class ExportJob:
    """What an export writes, and the facts for its model card."""

    to: Path
    """Folder to make; it does not exist."""

    run: str
    """Name of the run."""

    merge: bool = True
    """Merge an adapter into the weights; else only the adapter is written."""

    flat: bool = False
    """Write one thing, into `to` itself; else `model` and `adapter` inside it."""

    step: int | None = None
    """Optimizer steps of the checkpoint."""

    units: int | None = None
    """Units (tokens, images) seen up to the checkpoint."""

    before: float | None = None
    """Primary metric on the held-out data before training."""

    after: float | None = None
    """The same after training."""

    go_on: Watch = unwatched

    def place(self, name: str) -> Path:
        """Return the folder for one part of the export, `model` or `adapter`.

        Args:
            name: Which part.
        """
        return self.to if self.flat else self.to / name


class Task(ABC):
    """A task: samples, model, loss, metrics, export.

    A task is made once per process. It may keep what it reads (a tokenizer, the names of the classes), but no tensor of
    the model in training, which is passed to each method.

    Args:
        config: The run.
        accelerator: `cpu` or `cuda`.
        located: The base model, where the recipe names one; its class decides what that is.
    """

    primary: Metric = Metric()
    """The primary metric."""

    unit: str = ""
    """What throughput counts: tokens, images, windows; empty = as the recipe's task says."""

    sample: str = ""
    """What one sample is called in messages; empty = as the recipe's task says."""

    model_kind: ClassVar[ModelKind | None] = None
    """For a task of the user's: kind of model that `model.path` names, when it names one."""

    Options: ClassVar[type | None] = None
    """For a task of the user's: a dataclass, whose fields are the keys below `task.options`."""

    talks: ClassVar[bool] = False
    """Whether one can talk to the trained model (`aitrain chat`)."""

    most_on_cpu: ClassVar[int] = 8
    """Micro-batch above which a CPU is not faster; with samples of different lengths, more only adds padding."""

    weight_unit: ClassVar[str] = "samples"
    """The unit over which the loss is averaged: tokens, images, pairs."""

    def __init__(self, config: RunConfig, accelerator: str = "cpu", located: Any = None) -> None:
        self.config = config
        self.accelerator = accelerator
        self.located = located
        self.unit = type(self).unit or config.task.unit
        self.sample = type(self).sample or config.task.sample
        self.options: Any = None
        if isinstance(config.task, UserClass):
            self.options = typed_options(type(self), config.task.options, "task.options.")

    # ---------------------------------------------------------------- before training

    def facts(self) -> dict[str, Any]:
        """Return plain values that identify this model and everything that belongs to it."""
        return {}

    @abstractmethod
    def samples(self, group: Group, watch: Watch = unwatched) -> Splits:
        """Read and check the data; every rank calls this, and every rank gets the same samples.

        Args:
            group: The ranks.
            watch: Called between the parts of the work.

        Raises:
            DataError: The data is refused, with file and line; on every rank.
        """

    def refuse_late(self, splits: Splits) -> None:  # noqa: B027 (most tasks have nothing to do here)
        """Refuse what can be found only once model and data are known; called by `train` and `check`.

        Args:
            splits: The samples.

        Raises:
            RecipeError: The run cannot work as asked.
        """

    def dry_build(self) -> None:  # noqa: B027 (most tasks have nothing to do here)
        """Find faults of building the model, without loading weights; called by `check`.

        Raises:
            ModelError: It cannot be built.
        """

    def shown_sample(self, samples: Samples, index: int) -> str:
        """Return one sample as readable text.

        Args:
            samples: The samples.
            index: Number of the sample.
        """
        batch = samples.collate(np.array([index]), 1)
        lines = [f"  {key}: {value.tolist() if torch.is_tensor(value) else value}" for key, value in batch.items()]
        return "\n".join([f"sample {index}", *lines])

    def parameters(self) -> int | None:
        """Return the number of weights of the model, an estimate; None if it is not known."""
        return None

    def fitting(self, room: Room) -> int | None:
        """Estimate how many samples fit into memory at once; None if there is no estimate.

        Args:
            room: The memory.
        """
        return None

    def smaller(self) -> list[str]:
        """Return words `key=value` that reduce the memory of a sample, for a run that ran out of it."""
        return []

    def flops_per_unit(self) -> float | None:
        """Estimate the floating-point operations of forward and backward per unit; None if there is no estimate."""
        return None

    def learned(self) -> dict[str, Any]:
        """Return plain values that `samples` found in the data and that the model needs without them: names of classes,
        means of columns. They are kept in every checkpoint.
        """
        return {}

    def recall(self, values: Mapping[str, Any]) -> None:  # noqa: B027 (most tasks have nothing to do here)
        """Restore what `learned` returned, for use without samples.

        Args:
            values: From a checkpoint.
        """

    # ---------------------------------------------------------------- the model

    @abstractmethod
    def build(self) -> nn.Module:
        """Build the model; called once, in the strategy's build context, with the recipe's seed set."""

    def finish(self, model: nn.Module) -> None:  # noqa: B027 (most tasks have nothing to do here)
        """Change the built model outside the strategy's build context.

        Args:
            model: What `build` returned.
        """

    def remarks(self) -> list[str]:
        """Return notes about model and tokenizer for the user before training, one sentence each."""
        return []

    def starting_notes(self, model: nn.Module, device: torch.device) -> Iterator[Note]:
        """Yield messages for the user once the model is ready; every rank calls this.

        Args:
            model: The model, in evaluation mode and without gradients.
            device: Where it is.
        """
        yield from ()

    # ---------------------------------------------------------------- steps

    @abstractmethod
    def loss_sum(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the sum of the losses of a micro-batch, a scalar to differentiate.

        Not a mean: the trainer divides by the weight of the whole global batch, which it knows from `Samples.weights`,
        so the result depends on neither ranks nor micro-batch. A micro-batch without a sample gives 0 that depends on
        every trained weight.

        Args:
            model: The model.
            batch: What `Samples.collate` made, on the device.
        """

    @abstractmethod
    def measure(self, model: nn.Module, batch: Mapping[str, Any]) -> Measured:
        """Measure the model on one batch of held-out samples, without gradients.

        Args:
            model: The model, in evaluation mode.
            batch: What `Samples.collate` made, on the device.
        """

    def metrics(self, found: Measured) -> dict[str, float]:
        """Return the metrics over all held-out samples, including `loss` and the primary metric.

        Args:
            found: Sums over all batches and ranks, and the rows of all samples in their order.
        """
        total, weight = found.sums[:2].tolist()
        return {"loss": total / weight}

    def sentence(self, metrics: Mapping[str, float]) -> str:
        """Return metrics in readable form.

        Args:
            metrics: From `metrics`.
        """
        return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items())

    def baselines(self, splits: Splits) -> dict[str, dict[str, float]]:
        """Return the metrics of trivial baselines on the held-out data, by name; printed with the result.

        Args:
            splits: The samples.
        """
        return {}

    def picture(self, found: Measured, file: Path) -> bool:
        """Draw what was measured after training.

        Args:
            found: Sums over all batches and ranks, and the rows of all samples in their order.
            file: Picture to write, an `.svg`.

        Returns:
            Whether there is one.
        """
        return False

    def answers(self, model: nn.Module, device: torch.device, stop: Callable[[], bool]) -> list[dict[str, str]]:
        """Return example outputs of the model, before and after training, on a few fixed inputs.

        Every rank does the same, because under sharded strategies each step needs all of them.

        Args:
            model: The model, in evaluation mode and without gradients.
            device: Where it is.
            stop: Whether to end early.

        Returns:
            One `{"prompt", "answer"}` per input.
        """
        return []

    # ---------------------------------------------------------------- afterwards

    def trained_model(self, weights: Mapping[str, torch.Tensor]) -> nn.Module:
        """Build the model on the CPU in float32 and load the trained tensors of a checkpoint.

        Args:
            weights: Trained tensors, named as in `named_parameters()` of the model that was trained.

        Raises:
            ModelError: A name is missing, unknown or of another shape.
        """
        return with_weights(self.build(), weights)

    @abstractmethod
    def export(self, weights: Mapping[str, torch.Tensor], job: ExportJob) -> None:
        """Write the model in the formats of other tools.

        Args:
            weights: Trained tensors of a checkpoint.
            job: Destination, and facts for its model card.

        Raises:
            AitrainError: It cannot be written; nothing is left behind.
        """

    @property
    def predicts(self) -> bool:
        """Whether the trained model can be used on a file (`aitrain predict`)."""
        return type(self).predictions is not Task.predictions

    def predictions(self, model: nn.Module, path: Path, device: torch.device) -> Iterator[dict[str, Any]]:
        """Yield the prediction for each record of a file, as plain values.

        Args:
            model: From `trained_model`, in evaluation mode.
            path: A file of records as in training; the targets may be absent.
            device: Where the model is.

        Raises:
            RecipeError: The task predicts nothing.
            DataError: A record cannot be used.
        """
        raise RecipeError("this task has no predictions for a file: write a method `predictions` in your class")

    def harness_model(self, harness: Any, model: nn.Module) -> Any:
        """Return the model wrapped for the LM evaluation harness.

        Args:
            harness: The package `lm_eval`.
            model: From `trained_model`.

        Raises:
            RecipeError: This is not a language model.
        """
        raise RecipeError("--lm-eval measures language models, and this run trains another kind: leave it out")
