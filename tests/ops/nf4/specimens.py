"""Ahead-of-time compilations of the 4-bit weights at the sizes that layers have."""

from __future__ import annotations

from aitrain.ops.nf4.kernel import group
from ops.specimen import Specimen

POINTERS = {"packed_ptr": "*u8", "code_ptr": "*fp32", "absmax_ptr": "*fp32"}
NESTED = {"absmax_ptr": "*u8", "nested_absmax_ptr": "*fp32", "nested_code_ptr": "*fp32", "offset_ptr": "*fp32"}


def specimen(name: str, out: str, block: int, nested: bool, count: str = "i32", wide: bool = True) -> Specimen:
    """Return the kernel for blocks of this size."""
    types = {**POINTERS, "out_ptr": f"*{out}", **(NESTED if nested else {})}
    fixed = {"HALF": block // 2, "GROUP": group(block), "NESTED": nested, "NESTED_BLOCK": 256}
    fixed |= {} if nested else dict.fromkeys(("nested_absmax_ptr", "nested_code_ptr", "offset_ptr"))
    sizes = {"count": count, "size": count, "blocks": "i32"}
    return Specimen(
        name=name,
        module="aitrain.ops.nf4.kernel",
        function="_dequantise",
        signature={**types, **sizes, **dict.fromkeys(fixed, "constexpr")},
        constexprs=fixed,
        num_warps=8,
        amd_num_warps=4,
        divisible=(*types, *sizes) if wide else tuple(types),
        wide_loads=wide,
        wide_stores=wide,
        max_registers=128,
    )


SPECIMENS = [
    specimen("bf16, nested", "bf16", 64, True),
    specimen("bf16", "bf16", 64, False),
    specimen("fp16, nested", "fp16", 64, True),
    specimen("fp32, nested", "fp32", 64, True),
    specimen("bf16, nested, blocks of 32", "bf16", 32, True),
    specimen("bf16, nested, blocks of 4096", "bf16", 4096, True),
    specimen("bf16, nested, past 2^31", "bf16", 64, True, count="i64"),
    specimen("bf16, nested, odd size", "bf16", 64, True, wide=False),
]
