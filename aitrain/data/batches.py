"""Batches: which samples each rank sees in each micro-step, put together so that the global batch keeps its promise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from aitrain.data.order import sample_indices
from aitrain.data.token_set import TokenSet

IGNORED = -100
"""Label of a token without loss: the `ignore_index` of PyTorch's cross entropy."""

Batch = dict[str, Any]
Integers = npt.NDArray[np.int64]


def total_steps(size: int, global_batch: int, max_steps: int | None, max_epochs: float | None) -> tuple[int, int]:
    """Say how long a run is.

    Args:
        size: Training samples.
        global_batch: Samples per optimizer step over all ranks.
        max_steps: Most optimizer steps, or None.
        max_epochs: Most passes over the data, or None; one of the two is given. What is reached first ends the run.

    Returns:
        Optimizer steps, and samples in the whole run. Where epochs end it, the last step holds what is left.

    >>> total_steps(size=10, global_batch=4, max_steps=None, max_epochs=1.0)
    (3, 10)
    >>> total_steps(size=10, global_batch=4, max_steps=2, max_epochs=1.0)
    (2, 8)
    """
    assert max_steps is not None or max_epochs is not None, "one of max_steps and max_epochs must be given"
    samples = math.inf if max_steps is None else max_steps * global_batch
    if max_epochs is not None:
        # 0.07 * 100 is 7.000000000000001 in binary: without the allowance a sample too many would be used.
        samples = min(samples, max(1, math.ceil(max_epochs * size - 1e-6)))
    return math.ceil(samples / global_batch), int(samples)


@dataclass(frozen=True)
class StepPlan:
    """How the samples of a run are dealt to steps, micro-steps, ranks and rows.

    Micro-step `a` of step `s` gives row `m` of rank `r` the global sample `s*G + a*R*M + r*M + m`: the set of samples
    of a step depends on neither ranks nor micro-batch.
    """

    size: int
    """Training samples."""

    global_batch: int
    """G: samples per optimizer step over all ranks."""

    micro_batch: int
    """M: samples per rank and micro-step."""

    rank: int
    world: int
    """R: number of ranks."""

    seed: int
    shuffle: bool
    total_samples: int
    """Samples in the whole run, see `total_steps`."""

    first_step: int = 0
    """Optimizer steps done before, in a run that is continued."""

    def __post_init__(self) -> None:
        assert self.global_batch % (self.world * self.micro_batch) == 0, (
            f"global batch {self.global_batch} over {self.world} ranks x {self.micro_batch}: was to be refused before"
        )
        assert self.size > 0, "no training samples"

    @property
    def accumulation(self) -> int:
        """A: micro-steps per optimizer step."""
        return self.global_batch // (self.world * self.micro_batch)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return math.ceil(self.total_samples / self.global_batch)

    def step_samples(self, step: int) -> Integers:
        """List the samples of one optimizer step over all ranks.

        Args:
            step: Optimizer step, from 0.

        Returns:
            Indices into the data, shape (G,), or fewer in the last step of a run of epochs.
        """
        first = step * self.global_batch
        numbers = np.arange(first, min(first + self.global_batch, self.total_samples), dtype=np.int64)
        return sample_indices(self.seed, numbers, self.size, self.shuffle)

    def share(self, samples: Integers, micro_step: int) -> Integers:
        """Take this rank's part of one micro-step.

        Args:
            samples: What `step_samples` gives for the step.
            micro_step: Micro-step within it, 0 to A - 1.

        Returns:
            Indices into the data, shape (M,), or fewer (even none) where the run's samples end.
        """
        begin = (micro_step * self.world + self.rank) * self.micro_batch
        return samples[begin : begin + self.micro_batch]


class MicroBatches(Dataset[Batch]):
    """Item k is the k-th micro-batch of this rank, put together.

    An item is a dict of `input_ids`, `attention_mask` and `labels` (each int64, shape (M, L)), the whole step's
    `global_trained_tokens`, `global_tokens` and `global_samples` over all ranks (counted without communication), `step`
    (from 0) and `last_micro_batch` (of its step). Use with `DataLoader(..., batch_size=None, shuffle=False)`.

    Args:
        tokens: Training samples, as many as `plan.size`.
        plan: How they are dealt.
        pad_token: Id that fills rows to the longest one; never seen by the loss.
    """

    def __init__(self, tokens: TokenSet, plan: StepPlan, pad_token: int) -> None:
        assert len(tokens) == plan.size, f"{len(tokens)} samples, the plan says {plan.size}"
        self.tokens = tokens
        self.plan = plan
        self.pad_token = pad_token
        self._step = -1
        self._samples: Integers = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return (self.plan.steps - self.plan.first_step) * self.plan.accumulation

    def __getitem__(self, k: int) -> Batch:
        if not 0 <= k < len(self):
            raise IndexError(k)
        plan = self.plan
        step, micro_step = divmod(k, plan.accumulation)
        step += plan.first_step
        if step != self._step:
            # Kept for the other micro-steps: drawing thousands of samples anew for each would be felt.
            self._step, self._samples = step, plan.step_samples(step)
        return {
            **collate(self.tokens, plan.share(self._samples, micro_step), plan.micro_batch, self.pad_token),
            "global_trained_tokens": int(self.tokens.trained_counts[self._samples].sum()),
            "global_tokens": int(self.tokens.lengths[self._samples].sum()),
            "global_samples": len(self._samples),
            "step": step,
            "last_micro_batch": micro_step == plan.accumulation - 1,
        }


class EvaluationBatches(Dataset[Batch]):
    """Every sample exactly once over all ranks, in file order, and as many batches on every rank.

    An item is a dict of `input_ids`, `attention_mask` and `labels` (each int64, shape (M, L)), and this batch's own
    `trained_tokens`, `tokens` and `samples`.

    Args:
        tokens: Held-out samples.
        micro_batch: Samples per rank at once.
        rank: This rank, from 0.
        world: Number of ranks.
        pad_token: Id that fills rows to the longest one.
    """

    def __init__(self, tokens: TokenSet, micro_batch: int, rank: int, world: int, pad_token: int) -> None:
        self.tokens = tokens
        self.micro_batch = micro_batch
        self.rank = rank
        self.world = world
        self.pad_token = pad_token

    def __len__(self) -> int:
        return math.ceil(len(self.tokens) / (self.world * self.micro_batch))

    def __getitem__(self, k: int) -> Batch:
        if not 0 <= k < len(self):
            raise IndexError(k)
        begin = min((k * self.world + self.rank) * self.micro_batch, len(self.tokens))
        rows = np.arange(begin, min(begin + self.micro_batch, len(self.tokens)), dtype=np.int64)
        return {
            **collate(self.tokens, rows, self.micro_batch, self.pad_token),
            "trained_tokens": int(self.tokens.trained_counts[rows].sum()),
            "tokens": int(self.tokens.lengths[rows].sum()),
            "samples": len(rows),
        }


def collate(tokens: TokenSet, rows: Integers, micro_batch: int, pad_token: int) -> Batch:
    """Put samples into one padded batch.

    A row without a sample holds one visible padding token and no label: a row that sees nothing would make its
    softmax divide 0 by 0.

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
    samples = [tokens[int(row)] for row in rows]
    width = max(2, *(len(ids) for ids, _ in samples)) if samples else 2
    input_ids = np.full((micro_batch, width), pad_token, dtype=np.int64)
    attention_mask = np.zeros((micro_batch, width), dtype=np.int64)
    labels = np.full((micro_batch, width), IGNORED, dtype=np.int64)
    attention_mask[:, 0] = 1
    for row, (ids, trained) in enumerate(samples):
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
