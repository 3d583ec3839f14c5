"""Ahead-of-time compilations of the row passes at a vocabulary's width."""

from __future__ import annotations

from aitrain.ops.cross_entropy.kernel import BLOCK_BYTES
from ops.specimen import Specimen

PER_ROW = ("lse", "picked", "mean", "entropy")
POINTERS = {
    "_statistics": ["logits", "targets", *(f"{name}_out" for name in PER_ROW)],
    "_loss_and_gradient": ["logits", "gradient", "targets", "scale", "loss_out"],
    "_gradient": ["logits", "targets", "lse_in", "entropy_in", *(f"to_{name}_in" for name in PER_ROW)],
}
INTEGERS = {"_loss_and_gradient": ["rows", "classes", "stride", "out_stride"]}
FLOATS = {"_loss_and_gradient": ["logit_scale", "softcap", "smooth", "z_loss"]}
SIZE = {"bf16": 2, "fp16": 2, "fp32": 4}


def specimen(function: str, dtype: str, capped: bool = False, wide: bool = False, aligned: bool = True) -> Specimen:
    """Return one row pass over logits of a type; `wide` asks for mean and entropy, too."""
    types = {name: "*fp32" for name in POINTERS[function]} | {"targets": "*i64", "logits": f"*{dtype}"}
    if function == "_loss_and_gradient":
        types["gradient"] = f"*{dtype}"
    integers = INTEGERS.get(function, ["rows", "classes", "stride"])
    types |= dict.fromkeys(integers, "i32") | dict.fromkeys(FLOATS.get(function, ["logit_scale", "softcap"]), "fp32")
    fixed = {"CAPPED": capped, "MEAN": wide, "BLOCK": BLOCK_BYTES // SIZE[dtype]}
    if function != "_loss_and_gradient":
        fixed["ENTROPY"] = wide
    words = [function[1:].replace("_", " "), dtype, *(["capped"] if capped else []), *(["wide"] if wide else [])]
    # what the launcher finds out by itself: 16 divides a vocabulary of 128,256 and the rows' addresses
    divisible = [*POINTERS[function], *(name for name in integers if name != "rows" and aligned)]
    return Specimen(
        name=" ".join(words + ([] if aligned else ["odd vocabulary"])),
        module="aitrain.ops.cross_entropy.kernel",
        function=function,
        signature=types | dict.fromkeys(fixed, "constexpr"),
        constexprs=fixed,
        num_warps=32,
        amd_num_warps=16,
        divisible=tuple(divisible),
        wide_loads=aligned,
        wide_stores=aligned and function != "_statistics",
        # one program of 32 warps runs on a multiprocessor, which has 65,536 registers; an odd vocabulary is slow anyway
        max_registers=64 if aligned else 128,
    )


SPECIMENS = [
    *(
        specimen(function, dtype, capped, wide)
        for function in POINTERS
        for dtype in ("bf16", "fp16", "fp32")
        for capped, wide in ((False, False), (False, True), (True, False), (True, True))
        if dtype == "bf16" or capped == wide
    ),
    *(specimen(function, "fp32", aligned=False) for function in POINTERS),
    *(
        Specimen(
            name=f"times upstream {dtype}",
            module="aitrain.ops.cross_entropy.upstream",
            function="_times",
            signature={"gradient": f"*{dtype}", "upstream": "*fp32", "count": "i32", "BLOCK": "constexpr"},
            constexprs={"BLOCK": 8192},
            num_warps=8,
            amd_num_warps=4,
            divisible=("gradient", "count"),
        )
        for dtype in ("bf16", "fp16", "fp32")
    ),
]
