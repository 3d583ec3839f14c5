"""Which class an image belongs to: cross entropy over a pretrained body, or over its frozen features."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from aitrain.config import RunConfig
from aitrain.config.data import Images
from aitrain.config.task import ClassifyImage as Config
from aitrain.data import images
from aitrain.data.columns import Columns, ColumnWriter
from aitrain.data.image_account import ImageAccount
from aitrain.data.samples import Batch, Integers, Samples, Splits
from aitrain.data.source import Source
from aitrain.data.splits import split
from aitrain.dist.group import Group
from aitrain.errors import DataError
from aitrain.models.frozen_norm import freeze_statistics
from aitrain.models.image_processor import ImageProcessor
from aitrain.models.load import Located
from aitrain.tasks.classifier import Classifier
from aitrain.tasks.data_files import source_to_predict
from aitrain.tasks.metric import Metric
from aitrain.tasks.task import Watch, unwatched

VERSION = 1
"""Raised whenever the same images would be prepared differently."""


@dataclass(frozen=True)
class ImageSamples:
    """Sized images with the numbers of their labels; see `Samples`."""

    task: ClassifyImage
    columns: Columns

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def weights(self) -> npt.NDArray[Any]:
        """Weight of each image's class, `(N,)`; 1 where an image may have several."""
        return self.task.weights_of(self.columns)

    @property
    def units(self) -> Integers:
        """One per image, `(N,)`."""
        return np.ones(len(self), dtype=np.int64)

    def collate(self, rows: Integers, size: int) -> Batch:
        """Collate images into one batch.

        Args:
            rows: Numbers of the images.
            size: B, rows of the batch.

        Returns:
            `pixel_values`, float32 `(B, channels, height, width)`; `labels` as `Classifier.labels_of` makes them;
            `real`, float32 `(B,)`: 1 for an image, 0 for a black one that fills the batch.
        """
        pixels = torch.zeros(size, *self.task.shape)
        stacked = [self.columns.get("pixels", int(row)).reshape(self.task.shape) for row in rows]
        if stacked:
            pixels[: len(rows)] = self.task.images.scaled(np.stack(stacked))
        real = torch.zeros(size)
        real[: len(rows)] = 1.0
        return {"pixel_values": pixels, "labels": self.task.labels_of(self.columns, rows, size), "real": real}

    def place(self, index: int) -> str:
        """Return the file or line that an image comes from.

        Args:
            index: Number of the image.
        """
        return bytes(self.columns.get("place", index)).decode()


class ClassifyImage(Classifier):
    """An image classifier; see `Task`."""

    primary = Metric("balanced_accuracy", greater_is_better=True)
    weight_unit, most_on_cpu = "images", 32
    auto, adapter_kind, use = "AutoModelForImageClassification", "SEQ_CLS", "image-classification"

    def __init__(self, config: RunConfig, accelerator: str = "cpu", located: Located | None = None) -> None:
        super().__init__(config, accelerator, located)
        assert isinstance(config.task, Config) and isinstance(config.data, Images), "the recipe was checked"
        self.data, self.probe = config.data, config.task.linear_probe
        self.images = ImageProcessor(self.located)
        self.shape: tuple[int, ...] = ()
        self._examples: list[tuple[str, npt.NDArray[np.uint8]]] = []
        if self.several:
            self.primary = Metric("f1_macro", greater_is_better=True)

    def preparation(self) -> dict[str, Any]:
        """Return how images are prepared."""
        return {"processor": self.images.settings()}

    def processor(self) -> Any:
        """Return transformers' image processor."""
        return self.images.whole

    def check_source(self, source: Source) -> None:
        """Refuse a path that can hold no labelled images.

        Args:
            source: A folder or a table.
        """
        images.check_source(source)

    def digest_of(self, source: Source) -> str:
        """Return the checksum of a folder, or of a table with the images it names.

        Args:
            source: A folder or a table.
        """
        return images.source_digest(source, self.data)

    def samples(self, group: Group, watch: Watch = unwatched) -> Splits:
        """Read, check and resize the images; see `Task.samples`.

        Args:
            group: The ranks.
            watch: Called between the images.
        """
        content = {"version": VERSION, "several": self.several, "classes": self.known}
        content |= {"fields": [self.data.image_field, self.data.label_field]}
        folders = self.prepared(group, content, lambda source, first, to: self._write(source, first, to, watch))
        accounts = [ImageAccount.load(folder) for folder in folders]
        train, validation = Columns.open(folders[0]), Columns.open(folders[-1]) if len(folders) > 1 else None
        self.classes, self.shape = accounts[0].classes, tuple(accounts[0].shape)
        strata = [tuple(train.get("labels", at)) for at in range(len(train))]
        train, validation, same = split(train, validation, ["digest"], self.data, self.config.seed, strata)
        self.weigh(train)
        account = accounts[0].split(accounts, len(train), 0 if validation is None else len(validation), same)
        held = None if validation is None else ImageSamples(self, validation)
        shown = held or ImageSamples(self, train)
        spread = np.linspace(0, len(shown) - 1, min(3, len(shown))).round().astype(int)
        self._examples = [(shown.place(int(at)), shown.columns.get("pixels", int(at))) for at in spread]
        return Splits(ImageSamples(self, train), held, account, account.fingerprint())

    def _write(self, source: Source, training: Source, folder: Path, watch: Watch) -> None:
        first = images.read_images(training, self.data, self.several, self.known)
        classes = self.known or sorted({label for labels in first.labels for label in labels})
        found = first if source == training else images.read_images(source, self.data, self.several, classes)
        number = {name: at for at, name in enumerate(classes)}
        account = ImageAccount(source.name, self.digest_of(source), classes=classes, others=found.others)
        with ColumnWriter(
            folder, {"pixels": np.uint8, "labels": np.int32, "place": np.uint8, "digest": np.uint8}
        ) as writer:
            for image, labels, where in zip(found.sources, found.labels, found.places, strict=True):
                watch()
                try:
                    pixels = self._sized(image, where, account)
                except DataError as fault:
                    found.faults.add(fault)
                    continue
                writer.add(
                    pixels=pixels.ravel(),
                    labels=[number[label] for label in labels],
                    place=np.frombuffer(where.encode(), dtype=np.uint8),
                    digest=np.frombuffer(hashlib.blake2b(pixels.tobytes(), digest_size=16).digest(), dtype=np.uint8),
                )
                account.images += 1
        images.refuse(found, source.name, training=self.known is None and source == training)
        account.counts = dict(Counter(label for labels in found.labels for label in labels))
        account.save(folder)

    def _sized(
        self, source: images.ImageSource, where: str, account: ImageAccount | None = None
    ) -> npt.NDArray[np.uint8]:
        pixels = self.images.sized(images.opened(source, where), where)
        if account is not None:
            account.shape = account.shape or list(pixels.shape)
            if list(pixels.shape) != account.shape:
                raise DataError(
                    f"{where}: this model's image processor makes {' x '.join(map(str, pixels.shape))} of it and "
                    f"{' x '.join(map(str, account.shape))} of others: images of one batch must have one size; set "
                    "do_resize and do_center_crop in its preprocessor_config.json"
                )
        return pixels

    def build(self) -> nn.Module:
        """Load the model and put the adapter on; a linear probe trains the last layer alone.

        Batch normalisation keeps the statistics of the base model: those of a micro-batch would make the loss depend on
        how the global batch is divided.
        """
        model: Any = super().build()
        freeze_statistics(model)
        if self.probe:
            body = model.base_model_prefix
            for name, weight in model.named_parameters():
                weight.requires_grad = not name.startswith(f"{body}.")
        return model

    def shown_sample(self, samples: Samples, index: int) -> str:
        """Return where an image is from, with its label.

        Args:
            samples: From `samples`.
            index: Number of the image.
        """
        assert isinstance(samples, ImageSamples), "samples of this task"
        size = " x ".join(map(str, self.shape[1:]))
        label = self.names_of(samples.columns, index)
        return f"sample {index}: {label}\n{samples.place(index)}, seen by the model as {size} pixels"

    def logits(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the logits of a batch, `(B, C)`.

        Args:
            model: The model.
            batch: What `ImageSamples.collate` made.
        """
        kind = next(model.parameters()).dtype
        return model(pixel_values=batch["pixel_values"].to(kind)).logits

    def answers(self, model: nn.Module, device: torch.device, stop: Callable[[], bool]) -> list[dict[str, str]]:
        """Let the model label three held-out images.

        Args:
            model: The model.
            device: Where it is.
            stop: Whether to end early.
        """
        if not self._examples:
            return []
        pixels = np.stack([found.reshape(self.shape) for _, found in self._examples])
        logits = self.logits(model, {"pixel_values": self.images.scaled(pixels).to(device)}).float()
        return [
            {"prompt": where, "answer": self.named(row)} for (where, _), row in zip(self._examples, logits, strict=True)
        ]

    def predictions(self, model: nn.Module, path: Path, device: torch.device) -> Iterator[dict[str, Any]]:
        """Yield label and probabilities of an image, of each image below a folder, or of each row of a table.

        Args:
            model: From `trained_model`.
            path: An image, a folder or a table.
            device: Where the model is.

        Raises:
            DataError: An image cannot be opened.
        """
        asked = images.unlabelled(source_to_predict(path, self.data, self.data.image_field), self.data)
        while batch := [entry for entry, _ in zip(asked, range(32), strict=False)]:
            pixels = [self._sized(source, where) for where, source in batch]
            given = {"pixel_values": self.images.scaled(np.stack(pixels)).to(device)}
            for (where, _), row in zip(batch, self.logits(model, given).float().cpu(), strict=True):
                yield {"image": where} | self.said(row)
