"""Ahead-of-time compilations of the rotation at the heads that models have."""

from __future__ import annotations

from aitrain.ops.rope.kernel import tile
from ops.specimen import Specimen

POINTERS = ("q_ptr", "k_ptr", "q_out_ptr", "k_out_ptr", "cos_ptr", "sin_ptr")
STRIDES = tuple(f"{name}_{axis}" for name in ("q", "k", "q_out", "k_out") for axis in ("batch", "head", "token"))
STRIDES += ("table_batch", "table_token")
SPOTS = ("positions_batch", "positions_token")


def specimen(
    name: str, q_heads: int, k_heads: int, width: int, rotated: int, packed: bool = False, **constants: object
) -> Specimen:
    """Return the kernel for these heads in bf16, out of place."""
    groups, q_block, k_block, block, warps = tile(q_heads, k_heads, rotated // 2, width - rotated)
    rest = width - rotated
    fixed = {"Q_HEADS": q_heads, "K_HEADS": k_heads, "Q_BLOCK": q_block, "K_BLOCK": k_block, "HALF": rotated // 2}
    fixed |= {"BLOCK": block, "REST": rest, "BLOCK_REST": 1 << (max(1, rest) - 1).bit_length()}
    fixed |= {"NEIGHBOURS": False, "BACK": False, **constants}
    fixed |= {} if packed else {"positions_ptr": None}
    types = {**dict.fromkeys(POINTERS, "*bf16"), "positions_ptr": "*i64"}
    types |= dict.fromkeys(("length", "table_rows", *STRIDES, *SPOTS), "i32")
    return Specimen(
        name=name,
        module="aitrain.ops.rope.kernel",
        function="_rotate",
        signature=types | dict.fromkeys(fixed, "constexpr"),
        constexprs=fixed,
        num_warps=warps,
        amd_num_warps=max(1, warps // 2),
        divisible=(*POINTERS, *STRIDES),
        max_registers=128,
    )


SPECIMENS = [
    specimen("Llama 8B", 32, 8, 128, 128),
    specimen("Llama 8B backward", 32, 8, 128, 128, BACK=True),
    specimen("Llama 70B packed", 64, 8, 128, 128, packed=True),
    specimen("SmolLM 135M", 9, 3, 64, 64),
    specimen("Gemma 3", 4, 1, 256, 256),
    specimen("Phi with passing features", 32, 32, 96, 32),
    specimen("GLM neighbours", 32, 2, 128, 64, NEIGHBOURS=True),
]
