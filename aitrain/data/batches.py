"""Batches: which samples each rank sees in each micro-step, such that the global batch does not depend on ranks or
micro-batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from aitrain.data.order import sample_indices
from aitrain.data.samples import Batch, Integers, Samples


def total_steps(size: int, global_batch: int, max_steps: int | None, max_epochs: float | None) -> tuple[int, int]:
    """Return the length of a run.

    Args:
        size: Training samples.
        global_batch: Samples per optimizer step over all ranks.
        max_steps: Most optimizer steps, or None.
        max_epochs: Most passes over the data, or None; at least one of the two is given. The run ends at whichever is
            reached first.

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
    """Which samples each step, micro-step, data-parallel rank and row of a run gets.

    Micro-step `a` of step `s` gives row `m` of data-parallel rank `r` the global sample `s*G + a*R*M + r*M + m`: the
    samples of a step depend on neither ranks nor micro-batch.
    """

    size: int
    """Training samples."""

    global_batch: int
    """G: samples per optimizer step over all ranks."""

    micro_batch: int
    """M: samples per rank and micro-step."""

    data_rank: int
    """r: number of this data-parallel rank."""

    data_size: int
    """R: number of data-parallel ranks."""

    seed: int
    shuffle: bool
    total_samples: int
    """Samples in the whole run, see `total_steps`."""

    first_step: int = 0
    """Optimizer steps done before, in a run that is continued."""

    def __post_init__(self) -> None:
        assert self.global_batch % (self.data_size * self.micro_batch) == 0, (
            f"global batch {self.global_batch} over {self.data_size} ranks x {self.micro_batch}: to be refused before"
        )
        assert self.size > 0, "no training samples"

    @property
    def accumulation(self) -> int:
        """A: micro-steps per optimizer step."""
        return self.global_batch // (self.data_size * self.micro_batch)

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
        begin = (micro_step * self.data_size + self.data_rank) * self.micro_batch
        return samples[begin : begin + self.micro_batch]


class MicroBatches(Dataset[Batch]):
    """Item k is the k-th micro-batch of this rank, collated.

    An item is what `Samples.collate` makes, and the whole step's `global_weight`, `global_units` and `global_samples`
    over all ranks (counted without communication), `step` (from 0) and `last_micro_batch` (of its step). Use with
    `DataLoader(..., batch_size=None, shuffle=False)`.

    Args:
        samples: Training samples, as many as `plan.size`.
        plan: Which of them this rank gets at which step.
        whole_share: Whether the first item of a step also has `share`: all micro-batches of this rank in that step.
    """

    def __init__(self, samples: Samples, plan: StepPlan, whole_share: bool = False) -> None:
        assert len(samples) == plan.size, f"{len(samples)} samples, the plan says {plan.size}"
        self.samples = samples
        self.plan = plan
        self.whole_share = whole_share
        self._weights, self._units = samples.weights, samples.units  # asked once: for many samples they take time
        self._step = -1
        self._rows: Integers = np.zeros(0, dtype=np.int64)

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
            self._step, self._rows = step, plan.step_samples(step)
        shares = range(plan.accumulation) if self.whole_share and not micro_step else ()
        return {
            **self.samples.collate(plan.share(self._rows, micro_step), plan.micro_batch),
            **(
                {"share": [self.samples.collate(plan.share(self._rows, at), plan.micro_batch) for at in shares]}
                if shares
                else {}
            ),
            "global_weight": self._weights[self._rows].sum().item(),
            "global_units": self._units[self._rows].sum().item(),
            "global_samples": len(self._rows),
            "step": step,
            "last_micro_batch": micro_step == plan.accumulation - 1,
        }


class EvaluationBatches(Dataset[Batch]):
    """Every sample exactly once over all ranks, in file order, with the same number of batches on every rank.

    An item is what `Samples.collate` makes, and `rows`, the numbers of the batch's samples, int64 `(<= M,)`.

    Args:
        samples: Held-out samples.
        micro_batch: M, samples per rank at once.
        data_rank: This rank among those that see different samples, from 0.
        data_size: How many of those there are.
    """

    def __init__(self, samples: Samples, micro_batch: int, data_rank: int, data_size: int) -> None:
        self.samples = samples
        self.micro_batch = micro_batch
        self.data_rank = data_rank
        self.data_size = data_size

    def __len__(self) -> int:
        return math.ceil(len(self.samples) / (self.data_size * self.micro_batch))

    def __getitem__(self, k: int) -> Batch:
        if not 0 <= k < len(self):
            raise IndexError(k)
        begin = min((k * self.data_size + self.data_rank) * self.micro_batch, len(self.samples))
        rows = np.arange(begin, min(begin + self.micro_batch, len(self.samples)), dtype=np.int64)
        return {**self.samples.collate(rows, self.micro_batch), "rows": rows}
