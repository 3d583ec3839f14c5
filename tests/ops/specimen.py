"""One ahead-of-time compilation that has to succeed: a kernel with the types and constants of a real call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Specimen:
    """A kernel as one real call would compile it."""

    name: str
    """Shown when it fails; unique within the op."""

    module: str
    """Where the kernel is, for instance `aitrain.ops.rms_norm.kernel`."""

    function: str
    signature: Mapping[str, str]
    """Type of every argument: `*bf16`, `*fp32`, `i32`, `i64`, `fp32`, `constexpr`, ..."""

    constexprs: Mapping[str, object] = field(default_factory=dict)
    num_warps: int = 4
    amd_num_warps: int | None = None
    """Where the launcher takes another number on AMD, whose warps have 64 threads."""

    divisible: tuple[str, ...] = ()
    """Arguments that the launcher knows to be divisible by 16 (pointers and strides)."""

    wide_loads: bool = True
    """Whether the machine code must load 16 bytes at a time."""

    wide_stores: bool = True
    max_registers: int = 255
