"""Shared parts of tasks on texts: a pretrained model with a head, its tokenizer, and the exported folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from aitrain.config import RunConfig
from aitrain.config.adapter import Lora
from aitrain.config.data import Sequences
from aitrain.data.prepare import tokenizer_content
from aitrain.data.samples import Batch
from aitrain.models.digest import text_digest
from aitrain.models.load import Located, load_tokenizer
from aitrain.models.memory import micro_batch_estimate
from aitrain.tasks.pretrained import Pretrained
from aitrain.tasks.task import Room


class TextEncoder(Pretrained):
    """A text model with a head; see `Task`."""

    texts_per_sample: int = 1
    """Sequences per sample."""

    def __init__(self, config: RunConfig, accelerator: str = "cpu", located: Located | None = None) -> None:
        super().__init__(config, accelerator, located)
        assert isinstance(config.data, Sequences), "the recipe was checked"
        self.sequence_tokens = config.data.sequence_tokens
        self.tokenizer = load_tokenizer(self.located)

    def facts(self) -> dict[str, Any]:
        """Return checksums of model and tokenizer."""
        return super().facts() | {"tokenizer": text_digest(tokenizer_content(self.tokenizer))}

    def preparation(self) -> dict[str, Any]:
        """Return longest sequence and tokenizer."""
        return {"length": self.sequence_tokens, "tokenizer": self.facts()["tokenizer"]}

    def processor(self) -> Any:
        """Return the tokenizer."""
        return self.tokenizer

    def fitting(self, room: Room) -> int | None:
        """Estimate how many samples fit into memory at once: as for a language model, without its vocabulary's logits.

        Args:
            room: The memory.
        """
        texts = micro_batch_estimate(
            replace(self.located.facts, vocab_size=1),
            self.sequence_tokens,
            bytes_free=room.bytes_free,
            trainable_share=self.lora_share(),
            precision_bytes=room.precision_bytes,
            checkpointing=self.config.trainer.activation_checkpointing,
            per_rank_state_bytes=0,
        )
        return texts // self.texts_per_sample

    def smaller(self) -> list[str]:
        """Return how to reduce the memory of a text."""
        return [f"data.sequence_tokens={self.sequence_tokens // 2}"]

    def flops_per_unit(self) -> float | None:
        """Estimate the operations of forward and backward per token; see `CausalLM.flops_per_unit`."""
        return (4.0 if isinstance(self.config.adapter, Lora) else 6.0) * (self.located.facts.parameters or 0)

    # ---------------------------------------------------------------- for subclasses

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
        """Collate token sequences into one batch, padded on the right.

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
