"""Keys of the group `export`: the model in the formats of other tools."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class ExportDtype(Enum):
    """Number format of exported weights."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


@dataclass
class Export:
    """What is written to `export/` when the run is done."""

    at_end: bool = True
    """Write a Hugging Face folder when training is done; off = only with `aitrain export`."""

    merge: bool = True
    """Merge the adapter into the weights; the adapter is also kept on its own."""

    dtype: ExportDtype | None = None
    """Number format of the model's weights; `null` = that of the base model. An adapter alone stays fp32."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        yield from ()
