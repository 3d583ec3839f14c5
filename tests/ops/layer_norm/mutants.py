"""Bugs to plant into LayerNorm; each must turn its test red."""

from __future__ import annotations

from ops.mutant import Mutant

KERNEL = "aitrain/ops/rms_norm/kernel.py"
OP = "aitrain/ops/layer_norm/op.py"
HERE = "tests/ops/layer_norm/test_op.py"
ODD = f"{HERE}::test_plain[triton-odd-dtype0]"
COMPILED = f"{HERE}::test_compiled_whole[reference]"

MUTANTS = [
    Mutant(
        "the mean is taken from padding",
        KERNEL,
        "full = tl.where(inside, full - mean[:, None], 0.0)",
        "full = full - mean[:, None]",
        ODD,
    ),
    Mutant("mean over the block", KERNEL, "mean = tl.sum(full, 1) / N", "mean = tl.sum(full, 1) / BLOCK", ODD),
    Mutant("dx without its mean", KERNEL, "dx -= (tl.sum(scaled, 1) / N)[:, None]", "dx -= 0.0", ODD),
    Mutant("dbias of scaled gradients", KERNEL, "dbias += scaled", "dbias += scaled * rstd", ODD),
    Mutant("no bias", KERNEL, "y += tl.load(bias_ptr", "y += 0.0 * tl.load(bias_ptr", ODD),
    Mutant(
        "dweight lands where dbias should",
        KERNEL,
        "None if sums[1] is None else partial[-1]",
        "None if sums[1] is None else partial[0]",
        ODD,
    ),
    Mutant(
        "means are not centred in the backward pass",
        KERNEL,
        "normed = tl.where(here_inside, normed - mean, 0.0)",
        "normed = tl.where(here_inside, normed, 0.0)",
        ODD,
    ),
    Mutant(
        "compiled code mixes up the gradients",
        OP,
        "return dx, dweight, dbias, None",
        "return dx, dbias, dweight, None",
        COMPILED,
    ),
    Mutant(
        "compiled code forgets the sum's gradient",
        OP,
        "_REGISTERED_BACKWARD(grad, grad_total,",
        "_REGISTERED_BACKWARD(grad, None,",
        COMPILED,
    ),
]
