"""Input and output of every provider of a benchmark: two JSON files, so that no code is shared."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aitrain.io import write_text


@dataclass(frozen=True)
class Job:
    """One training run, the same for every provider."""

    model: str
    """Hugging Face folder with the starting weights."""

    records: str
    """JSON Lines file of conversations, which aitrain reads."""

    samples: str
    """JSON file of `{"input_ids": ..., "labels": ...}` in the order of training: the same conversations, tokenised and
    masked by aitrain, for the others."""

    sequence_tokens: int
    """Longest sample allowed, in tokens."""

    steps: int
    """Optimizer steps, those of the warm-up included."""

    micro_batch: int
    """Sequences per micro-batch."""

    accumulation: int
    """Micro-batches per optimizer step."""

    precision: str
    """`fp32` or `bf16` (autocast over fp32 weights)."""

    device: str
    """`cpu` or `cuda`."""

    pad_token: int
    """Id that fills rows on the right."""

    lr: float = 1e-4
    """Constant learning rate of AdamW."""

    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates; its weight decay is 0."""

    eps: float = 1e-8
    """AdamW's epsilon."""

    max_grad_norm: float = 1.0
    """Gradients are clipped at this 2-norm."""

    @property
    def global_batch(self) -> int:
        """Sequences per optimizer step."""
        return self.micro_batch * self.accumulation

    def write(self, path: Path) -> None:
        """Write the job where a provider's process will read it.

        Args:
            path: File to write.
        """
        write_text(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read a job.

        Args:
            path: What `write` wrote.
        """
        fields = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**fields, "betas": tuple(fields["betas"])})


@dataclass(frozen=True)
class Account:
    """What a provider measured in one process."""

    begins_s: list[float]
    """Clock at the beginning of each optimizer step, in seconds: the end of the one before, or when its turn came."""

    ends_s: list[float]
    """Clock at the end of each step, in seconds; this includes everything, also loading the batch."""

    losses: list[float]
    """Mean loss over the trained tokens of each step's global batch."""

    gradient_norms: list[float]
    """2-norm before clipping, per step."""

    peak_memory_gb: float
    """CUDA: peak of torch's allocator. CPU: peak resident memory of the whole process, libraries included."""

    versions: dict[str, str]
    """Packages that did the work."""

    threads: int
    """Threads torch computed with."""

    own_step_s: list[float] | None = None
    """Step times as the provider itself reports them, in seconds, where it does."""

    def write(self, path: Path) -> None:
        """Write the account for the process that waits for it.

        Args:
            path: File to write.
        """
        write_text(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Account:
        """Read an account.

        Args:
            path: What `write` wrote.
        """
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**fields)
