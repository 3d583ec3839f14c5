"""Ahead-of-time compilations of the norm kernels at widths that models have."""

from __future__ import annotations

from aitrain.ops.rms_norm.kernel import tile
from ops.specimen import Specimen

FORWARD = ["x_ptr", "residual_ptr", "weight_ptr", "bias_ptr", "y_ptr", "total_ptr", "mean_ptr", "rstd_ptr"]
BACKWARD = ["grad_ptr", "grad_total_ptr", "x_ptr", "weight_ptr", "mean_ptr", "rstd_ptr", "dx_ptr"]
BACKWARD += ["dweight_ptr", "dbias_ptr"]
FP32 = {"mean_ptr", "rstd_ptr", "dweight_ptr", "dbias_ptr"}


def specimen(
    name: str, function: str, features: int, absent: set[str], wide: bool = True, **constants: object
) -> Specimen:
    """Return one norm kernel over this many bf16 features, without the tensors named in `absent`."""
    backward = function == "_backward"
    block, rows, warps, ahead = tile(features, backward, constants.get("CENTRED") is True)
    pointers = BACKWARD if backward else FORWARD
    strides = ["grad_stride", "grad_total_stride", "x_stride"] if backward else ["x_stride", "residual_stride"]
    types = {pointer: "*fp32" if pointer in FP32 else "*bf16" for pointer in pointers}
    types |= {"rows": "i32", **dict.fromkeys(strides, "i32")} | ({} if backward else {"eps": "fp32"})
    fixed = {"N": features, "BLOCK": block, "ROWS": rows, "OFFSET": 0.0, "CENTRED": False}
    fixed |= {"AHEAD": ahead} if backward else {"ROUND_FIRST": True}
    fixed |= {**constants, **dict.fromkeys(absent)}
    divisible = [pointer for pointer in pointers if pointer not in absent]
    return Specimen(
        name=name,
        module="aitrain.ops.rms_norm.kernel",
        function=function,
        signature=types | dict.fromkeys(fixed, "constexpr"),
        constexprs=fixed,
        num_warps=warps,
        amd_num_warps=warps // 2,
        divisible=(*divisible, *(strides if wide else ())),
        wide_loads=wide,
        wide_stores=wide,
        # two backward programs of 8 warps, or one of 16, must fit into the 65,536 registers of a multiprocessor
        max_registers=128,
    )


NO_BIAS = {"bias_ptr", "mean_ptr"}
NO_SUM = {"residual_ptr", "total_ptr"}
BARE = {"mean_ptr", "dbias_ptr"}
SPECIMENS = [
    *(specimen(f"forward {n}", "_forward", n, NO_BIAS) for n in (1024, 4096, 16384)),
    *(specimen(f"forward of heads {n}", "_forward", n, NO_BIAS | NO_SUM) for n in (64, 256)),
    specimen("forward Gemma 2304", "_forward", 2304, NO_BIAS | NO_SUM, ROUND_FIRST=False, OFFSET=1.0),
    specimen("forward odd 1001", "_forward", 1001, NO_BIAS, wide=False),
    *(specimen(f"backward {n}", "_backward", n, BARE) for n in (1024, 2880, 4096, 8192, 16384)),
    specimen("backward alone 4096", "_backward", 4096, BARE | {"grad_total_ptr"}),
    specimen("backward frozen 4096", "_backward", 4096, BARE | {"dweight_ptr"}),
    *(specimen(f"backward of heads {n}", "_backward", n, BARE | {"grad_total_ptr"}) for n in (64, 128, 256)),
    specimen("backward odd 1001", "_backward", 1001, BARE, wide=False),
    Specimen(
        name="column sums",
        module="aitrain.ops.rms_norm.kernel",
        function="_column_sums",
        signature={
            **{"partial_ptr": "*fp32", "out_ptr": "*bf16", "programs": "i32", "columns": "i32"},
            **dict.fromkeys(("BLOCK_P", "BLOCK_N"), "constexpr"),
        },
        constexprs={"BLOCK_P": 64, "BLOCK_N": 32},
        divisible=("partial_ptr", "out_ptr", "columns"),
        wide_stores=False,
    ),
]
