"""Ahead-of-time compilations of the gated linear units at widths that models have."""

from __future__ import annotations

from aitrain.ops.glu.kernel import block
from ops.specimen import Specimen

FORWARD = ("gate_ptr", "up_ptr", "out_ptr", "gate_stride", "up_stride")
BACKWARD = ("grad_ptr", "gate_ptr", "up_ptr", "dgate_ptr", "dup_ptr", "grad_stride", "gate_stride", "up_stride")
BACKWARD += ("out_stride",)


def specimen(name: str, function: str, features: int, activation: int, wide: bool = True) -> Specimen:
    """Return one kernel over this many bf16 features."""
    arguments = FORWARD if function == "_forward" else BACKWARD
    fixed = {"F": features, "BLOCK": block(features), "ACTIVATION": activation}
    types = {name: "*bf16" if name.endswith("_ptr") else "i32" for name in arguments}
    warps = max(1, block(features) // 512)
    return Specimen(
        name=name,
        module="aitrain.ops.glu.kernel",
        function=function,
        signature=types | dict.fromkeys(fixed, "constexpr"),
        constexprs=fixed,
        num_warps=warps,
        amd_num_warps=max(1, warps // 2),
        divisible=arguments if wide else tuple(name for name in arguments if name.endswith("_ptr")),
        wide_loads=wide,
        wide_stores=wide,
        max_registers=80,  # so that 24 warps of a multiprocessor stay resident
    )


SPECIMENS = [
    specimen(f"{function[1:]} {name} {features}", function, features, activation, features % 8 == 0)
    for function in ("_forward", "_backward")
    for name, activation, features in (
        ("SwiGLU", 0, 14336),
        ("SwiGLU", 0, 8960),
        ("SwiGLU", 0, 1536),
        ("SwiGLU", 0, 1001),
        ("GeGLU", 1, 9216),
        ("exact GeGLU", 2, 14336),
    )
]
