"""Keys of the group `task`: what is learned from the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Task:
    """What is learned."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        yield from ()


@dataclass
class Sft(Task):
    """Supervised fine-tuning on conversations: the loss is taken on the assistant's turns only."""

    system_prompt: str | None = None
    """System message put before every conversation that has none; `null` = what the chat template does by itself."""


@dataclass
class Pretrain(Task):
    """Continued pretraining on plain text: the loss is taken on every token."""
