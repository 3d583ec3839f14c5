"""Which class a text belongs to: cross entropy over a pretrained body, and probabilities that can be believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from aitrain.config import RunConfig
from aitrain.config.data import Labelled
from aitrain.config.task import ClassifyText as Config
from aitrain.config.task import ClassWeights
from aitrain.data.cached import file_digest
from aitrain.data.columns import Columns, ColumnWriter
from aitrain.data.labels import held_out, read_labelled
from aitrain.data.records import read_records
from aitrain.data.samples import Batch, Integers, Samples, Splits
from aitrain.data.text_account import TextAccount, kept_texts
from aitrain.dist.group import Group
from aitrain.errors import DataError
from aitrain.models.load import Located
from aitrain.tasks.class_metrics import classes_in, multi_label_metrics, single_label_metrics
from aitrain.tasks.metric import Metric
from aitrain.tasks.task import Measured, Watch, unwatched
from aitrain.tasks.text_encoder import TextEncoder

VERSION = 1
"""Raised whenever the same input would be prepared otherwise."""


@dataclass(frozen=True)
class LabelledSamples:
    """Token sequences with the numbers of their labels; see `Samples`."""

    task: ClassifyText
    columns: Columns

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def weights(self) -> npt.NDArray[Any]:
        """Weight of each text's class, `(N,)`; 1 where a text may have several."""
        if self.task.several:
            return np.ones(len(self), dtype=np.int64)
        return self.task.class_weights[self.columns.single("labels")]

    @property
    def units(self) -> Integers:
        """Tokens of each text, `(N,)`."""
        return self.columns.lengths("ids")

    def collate(self, rows: Integers, size: int) -> Batch:
        """Put texts into one padded batch.

        Args:
            rows: Numbers of the texts.
            size: Rows of the batch.

        Returns:
            What `TextEncoder.padded` makes, and `labels`: int64 `(size,)`; float32 `(size, C)` with several per text.
        """
        batch = self.task.padded([self.columns.get("ids", int(row)) for row in rows], size)
        labels = (
            torch.zeros(size, len(self.task.classes)) if self.task.several else torch.zeros(size, dtype=torch.int64)
        )
        several = self.task.several
        for at, row in enumerate(rows):
            found = torch.from_numpy(np.array(self.columns.get("labels", int(row)), dtype=np.int64))
            if several:
                labels[at, found] = 1.0
            else:
                labels[at] = found[0]
        return batch | {"labels": labels}


class ClassifyText(TextEncoder):
    """A text classifier; see `Task`."""

    primary = Metric("f1_macro", greater_is_better=True)
    weight_unit = "texts"
    auto, adapter_kind, use = "AutoModelForSequenceClassification", "SEQ_CLS", "text-classification"

    def __init__(self, config: RunConfig, accelerator: str = "cpu", located: Located | None = None) -> None:
        super().__init__(config, accelerator, located)
        assert isinstance(config.task, Config) and isinstance(config.data, Labelled), "the recipe was checked"
        self.data = config.data
        self.several = config.task.multi_label
        self.balanced = config.task.class_weights is ClassWeights.balanced
        self.classes: list[str] = []
        self.class_weights: npt.NDArray[np.float64] = np.ones(0)
        self.temperature = 1.0
        self._known: list[str] | None = None
        self._examples: list[list[int]] = []

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
        """Take back what `learned` gave.

        Args:
            values: From a checkpoint.
        """
        self.classes, self.temperature = list(values["classes"]), float(values["temperature"])
        self._known = list(self.classes)  # other data is measured by these

    def samples(self, group: Group, watch: Watch = unwatched) -> Splits:
        """Read, check and tokenise the texts; see `Task.samples`.

        Args:
            group: The ranks.
            watch: Called between the files.
        """
        fields = [self.data.text_field, self.data.label_field, self.data.too_long.name]
        content = {"version": VERSION, "several": self.several, "fields": fields, "classes": self._known}
        folders = self.prepared(group, content, lambda path, first, to: self._write(path, first, to, watch))
        accounts = [TextAccount.load(folder) for folder in folders]
        train, validation = Columns.open(folders[0]), Columns.open(folders[-1]) if len(folders) > 1 else None
        self.classes = accounts[0].classes
        rows = held_out([tuple(train.get("labels", at)) for at in range(len(train))], self.data, self.config.seed)
        if rows is not None:
            validation = train.select(rows)
            train = train.select(np.setdiff1d(np.arange(len(train)), rows))
        counts = np.bincount(
            np.concatenate([train.get("labels", at) for at in range(len(train))]), minlength=len(self.classes)
        )
        self.class_weights = np.ones(len(self.classes))
        if self.balanced:
            self.class_weights = counts.sum() / (len(self.classes) * np.maximum(counts, 1))
        shown = train if validation is None else validation
        self._examples = [shown.get("ids", at).tolist() for at in range(min(3, len(shown)))]
        account = accounts[0].split(accounts, len(train), 0 if validation is None else len(validation))
        held = None if validation is None else LabelledSamples(self, validation)
        return Splits(LabelledSamples(self, train), held, account, account.fingerprint())

    def _write(self, path: Path, training: Path, folder: Path, watch: Watch) -> None:
        first = read_labelled(training, self.data, self.several, self._known)
        classes = self._known or sorted({label for labels in first.labels for label in labels})
        found = first if path == training else read_labelled(path, self.data, self.several, classes)
        number = {name: at for at, name in enumerate(classes)}
        watch()
        account = TextAccount(path.name, file_digest(path), len(found.texts), classes=classes)
        kept = kept_texts(self, found.texts, found.places, self.data, account)
        account.counts = dict(Counter(label for at, _ in kept for label in found.labels[at]))
        with ColumnWriter(folder, {"ids": np.int32, "labels": np.int32}) as writer:
            for at, ids in kept:
                writer.add(ids=ids, labels=[number[label] for label in found.labels[at]])
        account.save(folder)

    def shown_sample(self, samples: Samples, index: int) -> str:
        """Return a text with its labels.

        Args:
            samples: From `samples`.
            index: Number of the text.
        """
        assert isinstance(samples, LabelledSamples), "samples of this task"
        labels = ", ".join(self.classes[number] for number in samples.columns.get("labels", index)) or "no label"
        return f"sample {index}: {labels}\n{self.tokenizer.decode(samples.columns.get('ids', index))}"

    def baselines(self, splits: Splits) -> dict[str, dict[str, float]]:
        """Return what the commonest class, or none, would reach.

        Args:
            splits: The samples.
        """
        held = splits.validation
        if held is None:
            return {}
        assert isinstance(held, LabelledSamples) and isinstance(splits.train, LabelledSamples), "samples of this task"
        batch = held.collate(np.arange(len(held)), len(held))["labels"]
        if self.several:
            zeros = torch.full((len(held), len(self.classes)), -1.0)
            return {"no label at all": multi_label_metrics(zeros, batch)}
        commonest = int(np.bincount(splits.train.columns.single("labels")).argmax())
        logits = F.one_hot(torch.full((len(held),), commonest), len(self.classes)).double()
        return {f"always {self.classes[commonest]!r}": classes_in(logits, batch)}

    def _logits(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

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
            batch: From `LabelledSamples.collate`.
        """
        return self._losses(self._logits(model, batch), batch).sum()

    def measure(self, model: nn.Module, batch: Mapping[str, Any]) -> Measured:
        """Measure one batch.

        Args:
            model: The model.
            batch: From `LabelledSamples.collate`.

        Returns:
            Sums of losses and of weights; logits and labels of each row.
        """
        logits = self._logits(model, batch)
        weights = (
            torch.as_tensor(self.class_weights, device=logits.device)[batch["labels"]] if not self.several else 1.0
        )
        sums = torch.stack([self._losses(logits, batch).double().sum(), (batch["real"].double() * weights).sum()])
        labels = batch["labels"].float() if self.several else batch["labels"].float()[:, None]
        return Measured(sums, torch.cat([logits.float(), labels], 1))

    def metrics(self, found: Measured) -> dict[str, float]:
        """Return loss, accuracy, macro F1, balanced accuracy and calibration error, and fit the temperature.

        Args:
            found: Sums, and logits and labels of all texts.
        """
        assert found.rows is not None, "`measure` gives rows"
        logits, labels = found.rows[:, : len(self.classes)], found.rows[:, len(self.classes) :]
        if self.several:
            return super().metrics(found) | multi_label_metrics(logits, labels)
        metrics, self.temperature = single_label_metrics(logits, labels[:, 0].long())
        return super().metrics(found) | metrics

    def answers(self, model: nn.Module, device: torch.device, stop: Callable[[], bool]) -> list[dict[str, str]]:
        """Let the model label three held-out texts.

        Args:
            model: The model.
            device: Where it is.
            stop: Whether to end early.
        """
        if not self._examples:
            return []
        batch = {key: value.to(device) for key, value in self.padded(self._examples, len(self._examples)).items()}
        found = []
        for ids, logits in zip(self._examples, self._logits(model, batch).float(), strict=True):
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            found.append({"prompt": text if len(text) < 100 else text[:97] + "...", "answer": self.named(logits)})
        return found

    def predictions(self, model: nn.Module, path: Path, device: torch.device) -> Iterator[dict[str, Any]]:
        """Yield label and probabilities of each text of a file.

        Args:
            model: From `trained_model`.
            path: A file of records with a text.
            device: Where the model is.

        Raises:
            DataError: A record has no text.
        """
        records = read_records(path, self.data.text_field)
        while batch := list(islice(records, 32)):
            for _, record in batch:
                if isinstance(record, DataError):
                    raise record
            texts = [record[self.data.text_field] for _, record in batch if isinstance(record, dict)]
            given = {key: value.to(device) for key, value in self.padded(self.tokenise(texts), len(texts)).items()}
            logits = self._logits(model, given).float().cpu()
            scores = logits.sigmoid() if self.several else (logits / self.temperature).softmax(1)
            for text, row in zip(texts, scores, strict=True):
                shares = {name: round(float(value), 6) for name, value in zip(self.classes, row, strict=True)}
                chosen: Any = [name for name, value in shares.items() if value > 0.5]
                yield {"text": text, "label": chosen if self.several else max(shares, key=shares.__getitem__)} | {
                    "probabilities": shares
                }

    def picture(self, found: Measured, file: Path) -> bool:
        """Draw the confusion matrix; nothing where a text may have several labels.

        Args:
            found: Logits and labels of all texts.
            file: Picture to write.
        """
        if self.several or found.rows is None:
            return False
        from aitrain.tasks.pictures import confusion_matrix

        count = len(self.classes)
        confusion_matrix(found.rows[:, :count].argmax(1), found.rows[:, count].long(), self.classes, file)
        return True

    def named(self, logits: torch.Tensor) -> str:
        """Return what logits say, with its probability.

        Args:
            logits: Of one text, `(C,)`.
        """
        if self.several:
            chosen = [name for name, value in zip(self.classes, logits.tolist(), strict=True) if value > 0]
            return ", ".join(chosen) or "no label"
        probabilities = (logits / self.temperature).softmax(0)
        best = int(probabilities.argmax())
        return f"{self.classes[best]} ({100 * probabilities[best]:.0f} %)"
