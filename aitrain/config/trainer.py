"""Keys of the group `trainer`: length, batch sizes and devices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

AUTO = 0
"""The number that stands for `auto`: the value is chosen once the data is known."""

FEW_STEPS = 50
"""Optimizer steps below which a run is too short to learn much."""


class Precision(Enum):
    """Number format of the model's computations; the optimizer's master weights are fp32 in both."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Accelerator(Enum):
    """Kind of device."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclass
class Trainer:
    """Length, batch and devices of a run."""

    max_steps: int | None = None
    """Maximum number of optimizer steps; `null` = no limit. If `trainer.max_epochs` is also given, the run ends at
    whichever is reached first.
    """

    max_epochs: float | None = field(default=None, metadata={"auto": AUTO})
    """Maximum number of passes over the training data; the last global batch holds the remaining samples, so none is
    dropped or repeated. `auto` = enough for about 100 optimizer steps, between 3 and 10.
    """

    global_batch_samples: int = field(default=32, metadata={"auto": AUTO})
    """Global batch: samples per optimizer step over all devices. Losses do not depend on how it is split. `auto` = 4 to
    32, smaller for few samples.
    """

    micro_batch_samples: int | None = None
    """Micro-batch: samples per device in one pass; `null` = chosen from available memory. Changes speed and memory, not
    the result."""

    precision: Precision = Precision.auto
    """`bf16` or `fp32`; `auto` = `bf16` on GPUs, `fp32` on CPUs."""

    accelerator: Accelerator = Accelerator.auto
    """`auto` = GPUs (NVIDIA or AMD, both named `cuda`) when there are any, else the CPU."""

    devices: int | None = None
    """Devices per node; `null` = what torchrun or srun started, else all GPUs, else 1."""

    nodes: int | None = None
    """Nodes; `null` = what torchrun or srun started, else 1."""

    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, much less memory."""

    callbacks: list[str] = field(default_factory=list)
    """Your own Lightning callbacks, each as `FILE.py:CLASS`; constructed without arguments, called on every rank."""

    profile_steps: list[int] = field(default_factory=list)
    """First and last optimizer step that torch's profiler records, for instance `[10, 12]`; each rank writes a
    trace to `profile/` in the run directory, for Perfetto or Chrome. Empty = none."""

    hang_min: float | None = 20.0
    """Minutes without progress on any rank after which a run under srun writes the stack traces of all ranks and ends,
    to be continued from its newest checkpoint; `null` = never. Must be longer than the slowest step, compilation
    included.
    """

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        if self.max_steps is None and self.max_epochs is None:
            yield (
                "trainer.max_steps and trainer.max_epochs are both null, so the run would never end: "
                "give one of the two, for instance trainer.max_epochs=3"
            )
        if self.max_epochs is not None and self.max_epochs < 0:
            yield f"trainer.max_epochs={self.max_epochs} must be above 0, or auto"
        for word in self.callbacks:
            if not re.fullmatch(r".+\.py:[A-Za-z_]\w*", word):
                yield f"trainer.callbacks: {word} is not FILE.py:CLASS: write for instance my_file.py:MyCallback"
        steps = self.profile_steps
        if steps and (len(steps) != 2 or not 1 <= steps[0] <= steps[1]):
            yield f"trainer.profile_steps={steps} must be the first and the last step, counted from 1: [10,12]"
        if self.hang_min is not None and self.hang_min <= 0:
            yield f"trainer.hang_min={self.hang_min} must be above 0"
        for key in ("max_steps", "global_batch_samples", "micro_batch_samples", "devices", "nodes"):
            value = getattr(self, key)
            is_auto = key == "global_batch_samples" and value == AUTO
            if value is not None and value < 1 and not is_auto:
                yield f"trainer.{key}={value} must be at least 1"
