"""Shared parts of tasks that start from a Hugging Face model with a head: building and exporting it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from aitrain.config import RunConfig
from aitrain.config.adapter import Lora, Qlora
from aitrain.data.cached import cached, shared
from aitrain.data.records import check_source
from aitrain.data.source import Source
from aitrain.dist.group import Group
from aitrain.errors import RecipeError
from aitrain.models.digest import model_digests
from aitrain.models.load import Located
from aitrain.models.weights import with_weights
from aitrain.tasks.task import ExportJob, Task
from aitrain.tasks.token_data import cache_folder, data_files


class Pretrained(Task):
    """A pretrained body with a head; see `Task`."""

    auto: ClassVar[str] = "AutoModel"
    """Name of transformers' automatic class."""

    adapter_kind: ClassVar[str] = "FEATURE_EXTRACTION"
    """Task type of peft."""

    use: ClassVar[str] = "feature-extraction"
    """Purpose of the exported model, as hubs name it."""

    def __init__(self, config: RunConfig, accelerator: str = "cpu", located: Located | None = None) -> None:
        super().__init__(config, accelerator, located)
        assert located is not None, "such a task starts from a model folder"
        self.located: Located = located
        if isinstance(config.adapter, Qlora):
            raise RecipeError("adapter=qlora is for causal language models: write adapter=lora")

    def settings(self) -> dict[str, Any]:
        """Return settings for the model's config: number and names of the labels."""
        return {}

    def preparation(self) -> dict[str, Any]:
        """Return the settings that determine how a file is prepared, as plain values."""
        return {}

    @abstractmethod
    def processor(self) -> Any:
        """Return what belongs to the model in an exported folder: its tokenizer or image processor."""

    def check_source(self, source: Source) -> None:
        """Refuse a path that cannot hold data.

        Args:
            source: The data files.

        Raises:
            DataError: It cannot be used.
        """
        check_source(source)

    def digest_of(self, source: Source) -> str:
        """Return the checksum of all that a path holds.

        Args:
            source: The data files.
        """
        return source.digest()

    def facts(self) -> dict[str, Any]:
        """Return checksums of the model."""
        return {"model": model_digests(self.located.folder)}

    def dry_build(self) -> None:
        """Build model and adapter without weights."""
        from aitrain.models.adapters import apply_adapter
        from aitrain.models.encoders import dry_build_encoder

        built = dry_build_encoder(self.located, self.auto, self.settings())
        with torch.device("meta"):
            apply_adapter(built, self.config.adapter, kind=self.adapter_kind)

    def parameters(self) -> int | None:
        """Return the number of weights."""
        return self.located.facts.parameters

    def build(self) -> nn.Module:
        """Load the model and put the adapter on."""
        from aitrain.models.adapters import apply_adapter
        from aitrain.models.encoders import build_encoder

        built = build_encoder(self.located, self.auto, self.settings())
        return apply_adapter(built, self.config.adapter, kind=self.adapter_kind)

    def finish(self, model: nn.Module) -> None:
        """Recompute activations where the recipe says so.

        Args:
            model: What `build` returned.
        """
        if self.config.trainer.activation_checkpointing:
            enable: Any = model.gradient_checkpointing_enable
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def trained_model(self, weights: Mapping[str, torch.Tensor]) -> nn.Module:
        """Build the model and load the trained tensors.

        Args:
            weights: Trained tensors of a checkpoint.
        """
        return with_weights(self.build(), weights, self.config.model.path)

    def export(self, weights: Mapping[str, torch.Tensor], job: ExportJob) -> None:
        """Write a Hugging Face folder.

        Args:
            weights: Trained tensors of a checkpoint.
            job: Destination, and facts for its model card.
        """
        from aitrain.models.export import Card, export_folder

        card = Card(
            job.run,
            use=self.use,
            step=job.step,
            tokens=job.units,
            loss_before=job.before,
            loss_after=job.after,
            metric=self.primary.name.replace("_", " "),
        )
        job.go_on()
        model: Any = self.trained_model(weights)
        processor = self.processor()
        export_folder(self.config, self.located, model, job.to, job.merge, card, job.go_on, job.flat, words=processor)

    def lora_share(self) -> float:
        """Return an estimate of the share of trained weights."""
        return 0.01 if isinstance(self.config.adapter, Lora) else 1.0

    def prepared(
        self, group: Group, content: dict[str, Any], write: Callable[[Source, Source, Path], None]
    ) -> list[Path]:
        """Return the folders of the prepared files, the training file first; written once, by rank 0.

        Args:
            group: The ranks.
            content: What decides how they are prepared, beside the files and `preparation`.
            write: Fills a folder, given a source, that of training (whose labels count) and the folder.

        Raises:
            DataError: The data is refused, on every rank.
        """
        files = data_files(self.config)
        sources = files.all
        known = {"task": type(self).__name__} | self.preparation()

        def all_of_them() -> list[Path]:
            for source in sources:
                self.check_source(source)
            digests = [self.digest_of(source) for source in sources]

            def one(source: Source, digest: str) -> Path:
                of_files = {"file": [source.name, digest], "training": digests[0]}
                return cached(cache_folder(), known | content | of_files, lambda to: write(source, sources[0], to))

            return [one(source, digest) for source, digest in zip(sources, digests, strict=True)]

        return shared(group, cache_folder(), all_of_them)
