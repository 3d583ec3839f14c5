"""Ahead-of-time compilations of the AdamW kernels: every kind of tensors, wide and narrow."""

from __future__ import annotations

from aitrain.ops.adamw.kernel import WARPS
from aitrain.ops.adamw.table import CHUNK
from ops.specimen import Specimen

TABLE = {"rows": "*i64", "chunks": "*i64"}
NUMBERS = ("beta1", "rest1", "beta2", "rest2", "eps")
VALUES = ("coefficients", "signed_values", "unsigned_values")
KINDS = {
    "fp32": (False, 32),
    "bf16 with fp32 moments": (True, 32),
    "bf16 with bf16 moments": (True, 16),
    "bf16 with 8-bit moments": (True, 8),
    "fp32 with 8-bit moments": (False, 8),
}


def step(name: str, bf16: bool, moment: int, wide: bool) -> Specimen:
    """Return the step kernel for parameters and gradients of one type."""
    signature = TABLE | dict.fromkeys(VALUES, "*fp32") | dict.fromkeys(NUMBERS, "fp32") | {"seed": "i64"}
    fixed = {"PARAM_BF16": bf16, "GRAD_BF16": bf16, "MOMENT": moment, "STOCHASTIC": True, "WIDE": wide}
    fixed |= {"CHUNK": CHUNK, "BLOCKS": WARPS if wide else 1}
    return Specimen(
        name=f"step, {name}{'' if wide else ', unaligned'}",
        module="aitrain.ops.adamw.kernel",
        function="_step",
        signature=signature | dict.fromkeys(fixed, "constexpr"),
        constexprs=fixed,
        num_warps=WARPS,
        amd_num_warps=WARPS // 2,
        divisible=("rows", "chunks", *VALUES),
        wide_loads=wide,
        wide_stores=wide,
        # four blocks of 128 threads per multiprocessor keep enough bytes in flight: 65,536 / 512
        max_registers=128,
    )


def squares(bf16: bool) -> Specimen:
    """Return the norm kernel."""
    fixed = {"GRAD_BF16": bf16, "WIDE": True, "CHUNK": CHUNK, "BLOCKS": WARPS}
    return Specimen(
        name=f"squares, {'bf16' if bf16 else 'fp32'}",
        module="aitrain.ops.adamw.kernel",
        function="_squares",
        signature=TABLE | {"partials": "*fp32", "count": "i32"} | dict.fromkeys(fixed, "constexpr"),
        constexprs=fixed,
        num_warps=WARPS,
        amd_num_warps=WARPS // 2,
        divisible=("rows", "chunks", "partials"),
        wide_stores=False,
        max_registers=64,
    )


PREPARE = Specimen(
    name="prepare",
    module="aitrain.ops.adamw.kernel",
    function="_prepare",
    signature={
        **{"squares": "*fp32", "count": "i32", "step": "*fp32", "out": "*fp32", "CLIPPED": "constexpr"},
        **dict.fromkeys(("lr", "log_beta1", "log_beta2", "decay", "max_norm"), "fp32"),
        "BLOCK": "constexpr",
    },
    constexprs={"CLIPPED": True, "BLOCK": 1024},
    num_warps=WARPS,
    amd_num_warps=WARPS // 2,
    divisible=("squares", "step", "out"),
    wide_loads=False,
    wide_stores=False,
)

SPECIMENS = [step(name, *kind, wide) for name, kind in KINDS.items() for wide in (True, False)]
SPECIMENS += [squares(True), squares(False), PREPARE]
