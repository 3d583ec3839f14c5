"""What the tasks on whole texts share: a pretrained body with a head, its tokenizer, and the exported folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn

from aitrain.config import RunConfig
from aitrain.config.adapter import Lora, Qlora
from aitrain.config.data import Sequences
from aitrain.data.cached import cached, file_digest, shared
from aitrain.data.prepare import tokenizer_content
from aitrain.data.records import check_file
from aitrain.data.samples import Batch
from aitrain.dist.group import Group
from aitrain.errors import RecipeError
from aitrain.models.digest import model_digests, text_digest
from aitrain.models.load import Located, load_tokenizer
from aitrain.models.memory import micro_batch_estimate
from aitrain.models.weights import with_weights
from aitrain.tasks.task import ExportJob, Room, Task
from aitrain.tasks.token_data import cache_folder, data_files


class TextEncoder(Task):
    """A text model with a head; see `Task`."""

    auto: ClassVar[str] = "AutoModel"
    """Name of transformers' automatic class."""

    adapter_kind: ClassVar[str] = "FEATURE_EXTRACTION"
    """peft's word for the task."""

    use: ClassVar[str] = "feature-extraction"
    """What the exported model is for, as hubs name it."""

    texts_per_sample: int = 1
    """Sequences that one sample puts into a batch."""

    def __init__(self, config: RunConfig, accelerator: str = "cpu", located: Located | None = None) -> None:
        super().__init__(config, accelerator, located)
        assert located is not None, "such a task starts from a model folder"
        assert isinstance(config.data, Sequences), "the recipe was checked"
        self.located: Located = located
        self.sequence_tokens = config.data.sequence_tokens
        self.tokenizer = load_tokenizer(located)
        if isinstance(config.adapter, Qlora):
            raise RecipeError("adapter=qlora is for causal language models: write adapter=lora")

    def settings(self) -> dict[str, Any]:
        """Return what goes into the model's config: number and names of the labels."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return checksums of model and tokenizer."""
        return {
            "model": model_digests(self.located.folder),
            "tokenizer": text_digest(tokenizer_content(self.tokenizer)),
        }

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

    def fitting(self, room: Room) -> int | None:
        """Estimate how many samples fit into memory at once: as for a language model, without its vocabulary's logits.

        Args:
            room: The memory.
        """
        texts = micro_batch_estimate(
            replace(self.located.facts, vocab_size=1),
            self.sequence_tokens,
            bytes_free=room.bytes_free,
            trainable_share=0.01 if isinstance(self.config.adapter, Lora) else 1.0,
            precision_bytes=room.precision_bytes,
            checkpointing=self.config.trainer.activation_checkpointing,
            per_rank_state_bytes=0,
        )
        return texts // self.texts_per_sample

    def smaller(self) -> list[str]:
        """Return how to make a text need less memory."""
        return [f"data.sequence_tokens={self.sequence_tokens // 2}"]

    def flops_per_unit(self) -> float | None:
        """Estimate the operations of forward and backward per token; see `CausalLM.flops_per_unit`."""
        return (4.0 if isinstance(self.config.adapter, Lora) else 6.0) * (self.located.facts.parameters or 0)

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
        """Build the model and put the trained tensors into it.

        Args:
            weights: Trained tensors of a checkpoint.
        """
        return with_weights(self.build(), weights, self.config.model.path)

    def export(self, weights: Mapping[str, torch.Tensor], job: ExportJob) -> None:
        """Write a Hugging Face folder.

        Args:
            weights: Trained tensors of a checkpoint.
            job: Where to, and what its card tells.
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
        export_folder(self.config, self.located, model, job.to, job.merge, card, job.go_on, job.flat)

    # ---------------------------------------------------------------- for subclasses

    def prepared(self, group: Group, content: dict[str, Any], write: Callable[[Path, Path, Path], None]) -> list[Path]:
        """Return the folders of the prepared files, the training file first; written once, by rank 0.

        Args:
            group: The ranks.
            content: What decides how they are prepared, beside the files, the tokenizer and the longest sequence.
            write: Fills a folder, given a file, the training file (whose labels count) and the folder.

        Raises:
            DataError: The data is refused, on every rank.
        """
        files = data_files(self.config)
        paths = [path for path in (files.train, files.validation) if path is not None]
        known = {"task": type(self).__name__, "length": self.sequence_tokens, "tokenizer": self.facts()["tokenizer"]}

        def one(path: Path) -> Path:
            digests = {"file": [path.name, file_digest(path)], "training": file_digest(paths[0])}
            return cached(cache_folder(), known | content | digests, lambda folder: write(path, paths[0], folder))

        def all_of_them() -> list[Path]:
            for path in paths:
                check_file(path)
            return [one(path) for path in paths]

        return shared(group, cache_folder(), all_of_them)

    def tokenise(self, texts: Sequence[Any], cut: bool = True) -> list[list[int]]:
        """Return the token ids of texts, special tokens included.

        Args:
            texts: Texts, or pairs of texts.
            cut: Whether what is longer than `data.sequence_tokens` is cut at its end.
        """
        pairs = bool(texts) and not isinstance(texts[0], str)
        given = [list(part) for part in zip(*texts, strict=True)] if pairs else [list(texts)]
        found = self.tokenizer(
            *given,
            truncation=cut,
            max_length=self.sequence_tokens if cut else None,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return cast(list[list[int]], found["input_ids"])

    def padded(self, sequences: Sequence[Any], size: int) -> Batch:
        """Put token sequences into one batch, padded on the right.

        Args:
            sequences: Token ids of each sample, at most `size`.
            size: Rows of the batch; one without a sample holds one visible padding token, so that no softmax is empty.

        Returns:
            `input_ids` and `attention_mask`, int64 `(size, L)`, and `real`, float32 `(size,)`: 1 for a sample, else 0.
        """
        pad = int(self.tokenizer.pad_token_id)
        width = max(1, *(len(ids) for ids in sequences)) if len(sequences) else 1
        ids = np.full((size, width), pad, dtype=np.int64)
        mask = np.zeros((size, width), dtype=np.int64)
        mask[:, 0] = 1
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        real = torch.zeros(size)
        real[: len(sequences)] = 1.0
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask), "real": real}
