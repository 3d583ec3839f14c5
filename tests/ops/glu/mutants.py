"""Bugs to plant into the gated linear units; each must turn its test red."""

from __future__ import annotations

from ops.mutant import Mutant

KERNEL = "aitrain/ops/glu/kernel.py"
OP = "aitrain/ops/glu/op.py"
HERE = "tests/ops/glu"


def odd(activation: str) -> str:
    """Return the test of an odd shape in float32."""
    return f"{HERE}/test_kernel.py::test_two_tensors[odd-dtype0-{activation}]"


BLOCKS = f"{HERE}/test_kernel.py::test_two_tensors[two blocks per row-dtype0-silu]"
LAYOUT = f"{HERE}/test_kernel.py::test_layouts[columns]"
PACKED = f"{HERE}/test_kernel.py::test_packed_gradient_is_one_tensor"
COMPILED = f"{HERE}/test_op.py::test_compiled_whole[reference]"

MUTANTS = [
    Mutant("slope of SiLU without its second term", KERNEL, "share * (1.0 + g * (1.0 - share))", "share", odd("silu")),
    Mutant("tanh without the cube", KERNEL, "(g + g * g * g * _CUBIC)", "g", odd("gelu_tanh")),
    Mutant("slope of tanh without the 3", KERNEL, "3.0 * _CUBIC", "1.0 * _CUBIC", odd("gelu_tanh")),
    Mutant("slope of erf without the density", KERNEL, "g * _DENSITY", "g * 0.0", odd("gelu")),
    Mutant("exact is tanh", OP, 'if approximate == "tanh" else "gelu"', 'if approximate else "gelu"', odd("gelu")),
    Mutant("dgate and dup change places", KERNEL, "dgate = grad * u *", "dgate = grad * g *", odd("silu")),
    Mutant(
        "only the first block",
        KERNEL,
        "(tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)\n    inside = col < F\n    g =",
        "tl.arange(0, BLOCK)\n    inside = col < F\n    g =",
        BLOCKS,
    ),
    Mutant(
        "up at the stride of gate",
        KERNEL,
        "up_ptr + row * up_stride + col, mask=inside, other=0.0).to(tl.float32)\n    out",
        "up_ptr + row * gate_stride + col, mask=inside, other=0.0).to(tl.float32)\n    out",
        LAYOUT,
    ),
    Mutant(
        "packed gradient at the stride of a half",
        KERNEL,
        "            left_out.stride(0),\n",
        "            features,\n",
        PACKED,
    ),
    Mutant("compiled code gives dup to nobody", OP, "None if up is None else dup, None", "None, None", COMPILED),
]
