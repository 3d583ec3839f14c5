"""Keys of the group `logger`: where metrics are logged in addition to `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class WandbMode(Enum):
    """Whether wandb may use the network."""

    offline = "offline"
    online = "online"


@dataclass
class Logger:
    """Where metrics go."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        yield from ()


@dataclass
class Jsonl(Logger):
    """Only `metrics.jsonl` and `events.jsonl` in the run directory."""


@dataclass
class Wandb(Logger):
    """Also a wandb run; nothing leaves the machine unless `logger.mode=online`."""

    project: str = "aitrain"
    """wandb project of the run."""

    entity: str | None = None
    """User or team; `null` = wandb's default."""

    mode: WandbMode = WandbMode.offline
    """`offline` writes files that `wandb sync` can send later; `online` sends while training."""


@dataclass
class Tensorboard(Logger):
    """Also TensorBoard event files in the run directory; needs the extra `tensorboard`."""
