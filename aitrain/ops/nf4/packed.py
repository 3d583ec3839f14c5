"""One weight held in 4 bits, as its layer keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from aitrain.ops.nf4.op import nf4_dequantise


@dataclass(frozen=True)
class Packed4bit:
    """A weight of bitsandbytes, in the words of `nf4_dequantise`."""

    packed: torch.Tensor
    absmax: torch.Tensor
    code: torch.Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    """What the weight had before it was quantised."""

    block: int
    nested_absmax: torch.Tensor | None = None
    nested_code: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    nested_block: int = 256

    @classmethod
    def of(cls, weight: Any) -> Packed4bit | None:
        """Read a `Params4bit` of bitsandbytes, which need not be installed.

        Args:
            weight: Any parameter.

        Returns:
            None when it holds no 4-bit codes in the common layout (not quantised yet, or repacked for the CPU).
        """
        state = getattr(weight, "quant_state", None)
        if state is None or getattr(state, "quant_type", None) not in ("nf4", "fp4") or state.shape is None:
            return None
        if getattr(state, "packing_format_for_cpu", False):
            return None
        bytes_ = weight.detach().as_subclass(torch.Tensor)
        if bytes_.dtype != torch.uint8:  # FSDP wants storage in a floating type; the bytes are the same
            bytes_ = bytes_.contiguous().view(torch.uint8)
        found = cls(bytes_, state.absmax, state.code, tuple(state.shape), state.dtype, state.blocksize)
        if not state.nested:
            return found
        inner = state.state2
        return cls(
            *(found.packed, found.absmax, found.code, found.shape, found.dtype, found.block),
            *(inner.absmax, inner.code, state.offset, inner.blocksize),
        )

    def dequantise(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the weight.

        Args:
            dtype: None = the type it had.
        """
        return nf4_dequantise(
            self.packed,
            self.absmax,
            self.shape,
            dtype or self.dtype,
            self.block,
            self.code,
            self.nested_absmax,
            self.nested_code,
            self.offset,
            self.nested_block,
        )
