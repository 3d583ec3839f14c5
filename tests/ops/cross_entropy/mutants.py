"""Bugs to plant into cross entropy; each must turn its test red."""

from __future__ import annotations

from ops.mutant import Mutant

KERNEL = "aitrain/ops/cross_entropy/kernel.py"
ROWS = "aitrain/ops/cross_entropy/rows.py"
OP = "aitrain/ops/cross_entropy/op.py"
HERE = "tests/ops/cross_entropy"
ALL = f"{HERE}/test_kernel.py::test_summed_with_an_upstream_gradient[some-all-dtype0]"
BLOCKS = f"{HERE}/test_kernel.py::test_each_row[two blocks per row-plain-dtype0]"
RISING = f"{HERE}/test_kernel.py::test_the_maximum_is_in_the_last_block[True-lower]"
INFINITE = f"{HERE}/test_kernel.py::test_the_maximum_is_in_the_last_block[True--inf]"
CPU = f"{HERE}/test_rows.py::test_loss_and_gradient[False-dtype0-all]"
IGNORED = f"{HERE}/test_rows.py::test_an_ignored_row_gives_zeros_whatever_stands_there[nan]"

MUTANTS = [
    Mutant("smoothing is forgotten in the gradient", KERNEL, "-weight * smooth / classes", "-weight * 0.0", ALL),
    Mutant("z-loss pulls half", KERNEL, "weight * (1.0 + 2.0 * z_loss * lse)", "weight * (1.0 + z_loss * lse)", ALL),
    Mutant("no slope of the cap", KERNEL, "grad *= 1.0 - (z / softcap) * (z / softcap)", "grad *= 1.0", ALL),
    Mutant("no chain rule of the scale", KERNEL, "        grad *= logit_scale\n", "", ALL),
    Mutant("the old sum is not scaled down", KERNEL, "total = total * shrink", "total = total", RISING),
    Mutant(
        "the first block alone",
        KERNEL,
        "        top = higher\n        first += BLOCK",
        "        top = higher\n        first += classes",
        BLOCKS,
    ),
    Mutant("entropy without what moved", KERNEL, "weighted + total * (top - base)", "weighted", RISING),
    Mutant(
        "a row of -inf subtracts -inf", KERNEL, 'tl.where(higher == float("-inf"), 0.0, higher)', "higher", INFINITE
    ),
    Mutant(
        "ignored rows keep their logits",
        KERNEL,
        "            _zero(out, target, classes, BLOCK)",
        "            pass",
        ALL,
    ),
    Mutant("the CPU forgets the mean", ROWS, "loss = loss - smooth * mean", "loss = loss", CPU),
    Mutant(
        "the CPU multiplies an ignored NaN by 0", ROWS, "index_fill_(0, ignored.nonzero()[:, 0], 0.0)", "abs()", IGNORED
    ),
    Mutant(
        "the upstream gradient is ignored",
        OP,
        "return gradient.mul_(upstream), None",
        "return gradient, None",
        ALL,
    ),
]
