"""Which class a text belongs to: cross entropy over a pretrained body, with calibrated probabilities."""

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
from torch import nn

from aitrain.config import RunConfig
from aitrain.config.data import Labelled
from aitrain.config.task import ClassifyText as Config
from aitrain.data.columns import Columns, ColumnWriter
from aitrain.data.labels import read_labelled
from aitrain.data.records import read_records
from aitrain.data.samples import Batch, Integers, Samples, Splits
from aitrain.data.source import Source
from aitrain.data.splits import split
from aitrain.data.text_account import TextAccount, kept_texts
from aitrain.dist.group import Group
from aitrain.errors import DataError
from aitrain.models.load import Located
from aitrain.tasks.classifier import Classifier
from aitrain.tasks.data_files import source_to_predict
from aitrain.tasks.task import Watch, unwatched
from aitrain.tasks.text_encoder import TextEncoder

VERSION = 1
"""Raised whenever the same input would be prepared differently."""


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
        return self.task.weights_of(self.columns)

    @property
    def units(self) -> Integers:
        """Tokens of each text, `(N,)`."""
        return self.columns.lengths("ids")

    def collate(self, rows: Integers, size: int) -> Batch:
        """Collate texts into one padded batch.

        Args:
            rows: Numbers of the texts.
            size: Rows of the batch.

        Returns:
            What `TextEncoder.padded` makes, and `labels`: int64 `(size,)`; float32 `(size, C)` with several per text.
        """
        batch = self.task.padded([self.columns.get("ids", int(row)) for row in rows], size)
        return batch | {"labels": self.task.labels_of(self.columns, rows, size)}


class ClassifyText(Classifier, TextEncoder):
    """A text classifier; see `Task`."""

    weight_unit = "texts"
    auto, adapter_kind, use = "AutoModelForSequenceClassification", "SEQ_CLS", "text-classification"

    def __init__(self, config: RunConfig, accelerator: str = "cpu", located: Located | None = None) -> None:
        super().__init__(config, accelerator, located)
        assert isinstance(config.task, Config) and isinstance(config.data, Labelled), "the recipe was checked"
        self.data = config.data
        self._examples: list[list[int]] = []

    def samples(self, group: Group, watch: Watch = unwatched) -> Splits:
        """Read, check and tokenise the texts; see `Task.samples`.

        Args:
            group: The ranks.
            watch: Called between the files.
        """
        fields = [self.data.text_field, self.data.label_field, self.data.too_long.name]
        content = {"version": VERSION, "several": self.several, "fields": fields, "classes": self.known}
        folders = self.prepared(group, content, lambda source, first, to: self._write(source, first, to, watch))
        accounts = [TextAccount.load(folder) for folder in folders]
        train, validation = Columns.open(folders[0]), Columns.open(folders[-1]) if len(folders) > 1 else None
        self.classes = accounts[0].classes
        strata = [tuple(train.get("labels", at)) for at in range(len(train))]
        train, validation, same = split(train, validation, ["ids"], self.data, self.config.seed, strata)
        self.weigh(train)
        shown = train if validation is None else validation
        self._examples = [shown.get("ids", at).tolist() for at in range(min(3, len(shown)))]
        account = accounts[0].split(accounts, len(train), 0 if validation is None else len(validation), same)
        held = None if validation is None else LabelledSamples(self, validation)
        return Splits(LabelledSamples(self, train), held, account, account.fingerprint())

    def _write(self, source: Source, training: Source, folder: Path, watch: Watch) -> None:
        first = read_labelled(training, self.data, self.several, self.known)
        classes = self.known or sorted({label for labels in first.labels for label in labels})
        found = first if source == training else read_labelled(source, self.data, self.several, classes)
        number = {name: at for at, name in enumerate(classes)}
        watch()
        account = TextAccount(source.name, source.digest(), len(found.texts), classes=classes)
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
        columns = self.columns_of(samples)
        return f"sample {index}: {self.names_of(columns, index)}\n{self.tokenizer.decode(columns.get('ids', index))}"

    def logits(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the logits of a batch, `(size, C)`.

        Args:
            model: The model.
            batch: What `LabelledSamples.collate` made.
        """
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

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
        for ids, logits in zip(self._examples, self.logits(model, batch).float(), strict=True):
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
        records = read_records(source_to_predict(path, self.data, self.data.text_field), self.data.text_field)
        while batch := list(islice(records, 32)):
            for _, record in batch:
                if isinstance(record, DataError):
                    raise record
            texts = [record[self.data.text_field] for _, record in batch if isinstance(record, dict)]
            given = {key: value.to(device) for key, value in self.padded(self.tokenise(texts), len(texts)).items()}
            logits = self.logits(model, given).float().cpu()
            for text, row in zip(texts, logits, strict=True):
                yield {"text": text} | self.said(row)
