"""Token sequences as samples of a causal language model: padded batches with labels where there is loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aitrain.data.samples import Batch, Integers
from aitrain.data.token_set import TokenSet

IGNORED = -100
"""Label of a token without loss: the `ignore_index` of PyTorch's cross entropy."""


@dataclass(frozen=True)
class TokenSamples:
    """The samples of a token set; see `Samples`."""

    tokens: TokenSet
    pad_token: int
    """Id that fills rows to the longest one; never seen by the loss."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def weights(self) -> npt.NDArray[np.int64]:
        """Trained tokens of each sample, `(N,)`."""
        return self.tokens.trained_counts

    @property
    def units(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample, `(N,)`."""
        return self.tokens.lengths

    def collate(self, rows: Integers, size: int) -> Batch:
        """Collate samples into one padded batch, see `collate`.

        Args:
            rows: Indices of the samples, at most `size`.
            size: Rows of the batch.
        """
        return collate(self.tokens, rows, size, self.pad_token)


def collate(tokens: TokenSet, rows: Integers, micro_batch: int, pad_token: int) -> Batch:
    """Collate samples into one padded batch.

    A row without a sample holds one visible padding token and no label: a row without any visible token would divide 0
    by 0 in its softmax.

    Args:
        tokens: Where the samples are.
        rows: Indices of the samples, at most `micro_batch`.
        micro_batch: M, rows of the batch.
        pad_token: Id that fills rows on the right.

    Returns:
        `input_ids`, `attention_mask` and `labels`, int64, shape (M, L) with L the longest sample but at least 2. Labels
        stand at the position of their token (not shifted) and are -100 where there is no loss. `predicting`, int64,
        shape (K,), K >= 1: the positions whose next token is trained in some row, the only ones that need logits.
        `trained_tokens`: how many labels there are, a number.
    """
    samples: list[tuple[Any, Any] | None] = [tokens[int(row)] for row in rows]
    return padded([*samples, *[None] * (micro_batch - len(samples))], pad_token)


def padded(rows: Sequence[tuple[Any, Any] | None], pad_token: int) -> Batch:
    """Collate token sequences into one padded batch; see `collate`.

    Args:
        rows: Token ids and marks of each row; None = a row without a sample.
        pad_token: Id that fills rows on the right.
    """
    width = max(2, *(len(row[0]) for row in rows if row is not None)) if any(row is not None for row in rows) else 2
    input_ids = np.full((len(rows), width), pad_token, dtype=np.int64)
    attention_mask = np.zeros((len(rows), width), dtype=np.int64)
    labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
    attention_mask[:, 0] = 1
    for row, sample in enumerate(rows):
        if sample is None:
            continue
        ids, trained = sample
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
        labels[row, : len(ids)] = np.where(trained, ids, IGNORED)
    labels[:, 0] = IGNORED
    # found here, on the host: on a GPU, looking for them would make the host wait in every micro-batch
    predicting = np.flatnonzero((labels[:, 1:] != IGNORED).any(axis=0))
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention_mask),
        "labels": torch.from_numpy(labels),
        "predicting": torch.from_numpy(predicting if len(predicting) else np.zeros(1, dtype=np.int64)),
        "trained_tokens": int((labels != IGNORED).sum()),
    }


def pad_token_id(tokenizer: Any) -> int:
    """Choose the id that fills rows: the tokenizer's own, else its end-of-text token; it never counts in the loss.

    Args:
        tokenizer: A transformers tokenizer.

    Returns:
        Token id; 0 where the tokenizer names neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
