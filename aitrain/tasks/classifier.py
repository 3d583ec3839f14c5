"""Shared parts of classification tasks: losses, metrics and calibrated probabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from aitrain.config import RunConfig
from aitrain.config.task import Classify, ClassWeights
from aitrain.data.columns import Columns
from aitrain.data.samples import Samples, Splits
from aitrain.models.load import Located
from aitrain.tasks.class_metrics import classes_in, multi_label_metrics, single_label_metrics
from aitrain.tasks.metric import Metric
from aitrain.tasks.pretrained import Pretrained
from aitrain.tasks.task import Measured


class Classifier(Pretrained):
    """A classifier; see `Task`. Its batches hold `labels` and `real`, as `labels_of` makes them."""

    primary = Metric("f1_macro", greater_is_better=True)

    def __init__(self, config: RunConfig, accelerator: str = "cpu", located: Located | None = None) -> None:
        super().__init__(config, accelerator, located)
        assert isinstance(config.task, Classify), "the recipe was checked"
        self.several = config.task.multi_label
        self.balanced = config.task.class_weights is ClassWeights.balanced
        self.classes: list[str] = []
        self.class_weights: npt.NDArray[np.float64] = np.ones(0)
        self.temperature = 1.0
        self.known: list[str] | None = None
        """Classes that were learned before; other data is measured by these."""

    def settings(self) -> dict[str, Any]:
        """Return number, names and kind of the labels."""
        classes = self.classes or ["0", "1"]  # only to look whether the model can be built
        return {
            "num_labels": len(classes),
            "id2label": dict(enumerate(classes)),
            "label2id": {name: number for number, name in enumerate(classes)},
            "problem_type": "multi_label_classification" if self.several else "single_label_classification",
            "probability_temperature": self.temperature,
        }

    def learned(self) -> dict[str, Any]:
        """Return the classes in their order, and the temperature of the probabilities."""
        return {"classes": self.classes, "temperature": self.temperature}

    def recall(self, values: Mapping[str, Any]) -> None:
        """Restore what `learned` returned.

        Args:
            values: From a checkpoint.
        """
        self.classes, self.temperature = list(values["classes"]), float(values["temperature"])
        self.known = list(self.classes)

    def weigh(self, columns: Columns) -> None:
        """Set the weights of the classes from the training samples.

        Args:
            columns: With the field `labels`, which holds the numbers of each sample's classes.
        """
        found = [columns.get("labels", at) for at in range(len(columns))]
        counts = np.bincount(np.concatenate(found), minlength=len(self.classes))
        self.class_weights = np.ones(len(self.classes))
        if self.balanced:
            self.class_weights = counts.sum() / (len(self.classes) * np.maximum(counts, 1))

    def weights_of(self, columns: Columns) -> npt.NDArray[Any]:
        """Return the weight of each sample's class, `(N,)`; 1 where a sample may have several.

        Args:
            columns: With the field `labels`.
        """
        if self.several:
            return np.ones(len(columns), dtype=np.int64)
        return self.class_weights[columns.single("labels")]

    def labels_of(self, columns: Columns, rows: Sequence[int] | npt.NDArray[Any], size: int) -> torch.Tensor:
        """Return the labels of a batch.

        Args:
            columns: With the field `labels`.
            rows: Numbers of the samples, at most `size`.
            size: Rows of the batch.

        Returns:
            int64 `(size,)`; with several labels per sample float32 `(size, C)` of 0 and 1.
        """
        several = self.several
        labels = torch.zeros(size, len(self.classes)) if several else torch.zeros(size, dtype=torch.int64)
        for at, row in enumerate(rows):
            found = torch.from_numpy(np.array(columns.get("labels", int(row)), dtype=np.int64))
            if several:
                labels[at, found] = 1.0
            else:
                labels[at] = found[0]
        return labels

    def names_of(self, columns: Columns, index: int) -> str:
        """Return the classes of a sample in readable form.

        Args:
            columns: With the field `labels`.
            index: Number of the sample.
        """
        return ", ".join(self.classes[number] for number in columns.get("labels", index)) or "no label"

    def columns_of(self, samples: Samples) -> Columns:
        """Return the columns of samples of this task.

        Args:
            samples: From `samples`.
        """
        columns = getattr(samples, "columns", None)
        assert isinstance(columns, Columns), "samples of this task"
        return columns

    def baselines(self, splits: Splits) -> dict[str, dict[str, float]]:
        """Return the metrics of always predicting the most common class, or none.

        Args:
            splits: The samples.
        """
        if splits.validation is None:
            return {}
        held = self.columns_of(splits.validation)
        labels = self.labels_of(held, range(len(held)), len(held))
        if self.several:
            zeros = torch.full((len(held), len(self.classes)), -1.0)
            return {"no label at all": multi_label_metrics(zeros, labels)}
        commonest = int(np.bincount(self.columns_of(splits.train).single("labels")).argmax())
        logits = F.one_hot(torch.full((len(held),), commonest), len(self.classes)).double()
        return {f"always {self.classes[commonest]!r}": classes_in(logits, labels)}

    @abstractmethod
    def logits(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the logits of a batch, `(size, C)`.

        Args:
            model: The model.
            batch: What the samples' `collate` made.
        """

    def _losses(self, logits: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the loss of each row; 0 for one without a sample."""
        if self.several:
            found = F.binary_cross_entropy_with_logits(logits.float(), batch["labels"], reduction="none").mean(1)
            return found * batch["real"]
        weights = torch.as_tensor(self.class_weights, dtype=torch.float32, device=logits.device)
        return F.cross_entropy(logits.float(), batch["labels"], weight=weights, reduction="none") * batch["real"]

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the sum of the cross entropies, each times the weight of its class.

        Args:
            model: The model.
            batch: What the samples' `collate` made.
        """
        return self._losses(self.logits(model, batch), batch).sum()

    def measure(self, model: nn.Module, batch: Mapping[str, Any]) -> Measured:
        """Measure one batch.

        Args:
            model: The model.
            batch: What the samples' `collate` made.

        Returns:
            Sums of losses and of weights; logits and labels of each row.
        """
        logits = self.logits(model, batch)
        weights = (
            torch.as_tensor(self.class_weights, device=logits.device)[batch["labels"]] if not self.several else 1.0
        )
        sums = torch.stack([self._losses(logits, batch).double().sum(), (batch["real"].double() * weights).sum()])
        labels = batch["labels"].float() if self.several else batch["labels"].float()[:, None]
        return Measured(sums, torch.cat([logits.float(), labels], 1))

    def metrics(self, found: Measured) -> dict[str, float]:
        """Return loss, accuracy, macro F1, balanced accuracy and calibration error, and fit the temperature.

        Args:
            found: Sums, and logits and labels of all samples.
        """
        assert found.rows is not None, "`measure` gives rows"
        logits, labels = found.rows[:, : len(self.classes)], found.rows[:, len(self.classes) :]
        if self.several:
            return super().metrics(found) | multi_label_metrics(logits, labels)
        metrics, self.temperature = single_label_metrics(logits, labels[:, 0].long())
        return super().metrics(found) | metrics

    def said(self, logits: torch.Tensor) -> dict[str, Any]:
        """Return predictions from logits as plain values: `label` and `probabilities`.

        Args:
            logits: Of one sample, `(C,)`.
        """
        scores = logits.sigmoid() if self.several else (logits / self.temperature).softmax(0)
        shares = {name: round(float(value), 6) for name, value in zip(self.classes, scores, strict=True)}
        chosen: Any = [name for name, value in shares.items() if value > 0.5]
        return {"label": chosen if self.several else max(shares, key=shares.__getitem__), "probabilities": shares}

    def named(self, logits: torch.Tensor) -> str:
        """Return the prediction from logits with its probability.

        Args:
            logits: Of one sample, `(C,)`.
        """
        if self.several:
            chosen = [name for name, value in zip(self.classes, logits.tolist(), strict=True) if value > 0]
            return ", ".join(chosen) or "no label"
        probabilities = (logits / self.temperature).softmax(0)
        best = int(probabilities.argmax())
        return f"{self.classes[best]} ({100 * probabilities[best]:.0f} %)"

    def picture(self, found: Measured, file: Path) -> bool:
        """Draw the confusion matrix; nothing if a sample may have several labels.

        Args:
            found: Logits and labels of all samples.
            file: Picture to write.
        """
        if self.several or found.rows is None:
            return False
        from aitrain.tasks.pictures import confusion_matrix

        count = len(self.classes)
        confusion_matrix(found.rows[:, :count].argmax(1), found.rows[:, count].long(), self.classes, file)
        return True
