"""Bugs to plant into RMSNorm; each must turn its test red."""

from __future__ import annotations

from ops.mutant import Mutant

KERNEL = "aitrain/ops/rms_norm/kernel.py"
OP = "aitrain/ops/rms_norm/op.py"
HERE = "tests/ops/rms_norm"
SEVERAL = f"{HERE}/test_kernel.py::test_plain[more rows than programs, several per program-dtype0]"
ODD = f"{HERE}/test_kernel.py::test_plain[odd-dtype0]"
SUM = f"{HERE}/test_kernel.py::test_sum_first[shape0-dtype0]"

MUTANTS = [
    Mutant("eps is dropped", KERNEL, " + tl.full((), eps, tl.float32))", ")", ODD),
    Mutant("mean over the block", KERNEL, "tl.sum(full * full, 1) / N", "tl.sum(full * full, 1) / BLOCK", ODD),
    Mutant(
        "weight without its offset",
        KERNEL,
        "other=0.0).to(tl.float32) + OFFSET\n    if bias",
        "other=0.0).to(tl.float32)\n    if bias",
        SUM,
    ),
    Mutant("no projection in dx", KERNEL, "scaled - normed * (tl.sum(scaled * normed, 1) / N)[:, None]", "scaled", ODD),
    Mutant("dx without 1 / rms", KERNEL, "        dx *= rstd\n", "        dx = dx\n", ODD),
    Mutant(
        "the residual's gradient is scaled as well",
        KERNEL,
        "dx += past.to(tl.float32)",
        "dx += past.to(tl.float32) * rstd",
        SUM,
    ),
    Mutant("dweight of the last rows only", KERNEL, "dweight += scaled * normed", "dweight = scaled * normed", SEVERAL),
    Mutant(
        "some programs are not summed",
        KERNEL,
        "while first < programs:",
        "while first + BLOCK_P < programs:",
        f"{HERE}/test_kernel.py::test_partial_sums_of_many_programs",
    ),
    Mutant(
        "rows are stepped over",
        KERNEL,
        "tl.num_programs(0).to(tl.int64) * ROWS",
        "tl.num_programs(0).to(tl.int64) * ROWS * 2",
        SEVERAL,
    ),
    Mutant(
        "rows of x at the stride of y",
        KERNEL,
        "x = tl.load(x_ptr + row[:, None] * x_stride + col, mask=inside, other=0.0)\n    if residual",
        "x = tl.load(x_ptr + row[:, None] * N + col, mask=inside, other=0.0)\n    if residual",
        f"{HERE}/test_kernel.py::test_layouts[columns]",
    ),
    Mutant(
        "the unrounded sum is normalised",
        KERNEL,
        "(x.to(tl.float32) + residual.to(tl.float32)).to(x_ptr.dtype.element_ty)",
        "x",
        SUM,
    ),
    Mutant(
        "never rounded first",
        KERNEL,
        "    if ROUND_FIRST:\n",
        "    if ROUND_FIRST and CENTRED:\n",
        f"{HERE}/test_kernel.py::test_casts_round_where_they_say",
    ),
    Mutant(
        "dx is written into the incoming gradient",
        KERNEL,
        "dx = torch.empty(total.shape, dtype=total.dtype, device=total.device)",
        "dx = grad",
        ODD,
    ),
    Mutant(
        "the sum's gradient is forgotten without y",
        OP,
        "        return grad_total, None\n",
        "        return None, None\n",
        f"{HERE}/test_op.py::test_one_output_alone[reference-sum]",
    ),
    Mutant(
        "compiled code forgets the sum's gradient",
        OP,
        "_REGISTERED_BACKWARD(grad, grad_total, total,",
        "_REGISTERED_BACKWARD(grad, None, total,",
        f"{HERE}/test_op.py::test_compiled_whole[reference]",
    ),
]
