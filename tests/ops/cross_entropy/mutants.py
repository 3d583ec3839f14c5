"""Bugs to plant into cross entropy; each must turn its test red."""

from __future__ import annotations

from ops.mutant import Mutant

KERNEL = "aitrain/ops/cross_entropy/kernel.py"
ROWS = "aitrain/ops/cross_entropy/rows.py"
OP = "aitrain/ops/cross_entropy/op.py"
HERE = "tests/ops/cross_entropy"
ALL = f"{HERE}/test_kernel.py::test_summed_with_an_upstream_gradient[some-all-dtype0]"
BLOCKS = f"{HERE}/test_kernel.py::test_each_row[several blocks per row-plain-dtype0]"
MEAN = f"{HERE}/test_kernel.py::test_statistics_and_gradient_equal_the_row_passes_of_the_cpu[13-False-True-cap]"
RISING = f"{HERE}/test_kernel.py::test_the_maximum_is_in_the_last_block[True-lower]"
INFINITE = f"{HERE}/test_kernel.py::test_the_maximum_is_in_the_last_block[True--inf]"
BUFFER = f"{HERE}/test_kernel.py::test_a_buffer_of_its_own_leaves_the_logits_and_its_neighbours"
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
        BUFFER,
    ),
    Mutant("the CPU forgets the mean", ROWS, "loss = loss - smooth * mean", "loss = loss", CPU),
    Mutant(
        "the CPU multiplies an ignored NaN by 0", ROWS, "index_fill_(0, ignored.nonzero()[:, 0], 0.0)", "abs()", IGNORED
    ),
    Mutant(
        "the upstream gradient is ignored",
        OP,
        "return times_upstream_(gradient, upstream), None",
        "return gradient, None",
        ALL,
    ),
    Mutant(
        "a block of -inf spoils the entropy",
        KERNEL,
        "tl.where(total > 0.0, weighted + total * (top - base), 0.0)",
        "weighted + total * (top - base)",
        f"{HERE}/test_kernel.py::test_a_whole_block_of_minus_infinity[first]",
    ),
    Mutant(
        "a class of probability 0 spoils the entropy's gradient",
        KERNEL,
        "tl.where(p > 0.0, z - level, 0.0)",
        "(z - level)",
        f"{HERE}/test_kernel.py::test_a_whole_block_of_minus_infinity[last]",
    ),
    Mutant(
        "the mean's gradient is not divided",
        KERNEL,
        "to_each = tl.load(to_mean_in + index) / classes",
        "to_each = tl.load(to_mean_in + index)",
        MEAN,
    ),
    Mutant(
        "the gradient is written at the stride of the logits",
        KERNEL,
        "out = gradient + index * out_stride",
        "out = gradient + index * stride",
        BUFFER,
    ),
    Mutant(
        "a target outside the classes is taken for a class",
        KERNEL,
        'tl.where(target < classes, top, float("nan"))',
        "top",
        f"{HERE}/test_kernel.py::test_a_target_outside_the_classes_shows",
    ),
    Mutant(
        "compiled code ignores the upstream gradient",
        OP,
        "return gradient * upstream, None",
        "return gradient, None",
        f"{HERE}/test_op.py::test_compiled_code_equals_eager[reference-sum]",
    ),
    Mutant(
        "in place of rows that share their memory",
        OP,
        "logits.stride(-1) == 1 and logits.stride(0) >= logits.shape[1]",
        "logits.stride(-1) == 1",
        f"{HERE}/test_op.py::test_in_place_keeps_to_its_own_numbers[reference-expanded]",
    ),
    Mutant(
        "halves lose small gradients",
        OP,
        "return scale * _summed(rows, labels, torch.ones_like(scale), terms, inplace)",
        "return _summed(rows, labels, scale, terms, inplace)",
        f"{HERE}/test_op.py::test_small_gradients_of_halves_survive_a_loss_scale",
    ),
    Mutant(
        "fake tensors are launched on",
        OP,
        " and type(rows) is torch.Tensor:  # fake",
        ":  # fake",
        f"{HERE}/test_op.py::test_fake_tensors[reference-sum-wide1]",
    ),
    Mutant(
        "0 rows by 0 items",
        OP,
        "torch.where((labels >= 0).any(), scale, 0.0)",
        "scale",
        f"{HERE}/test_op.py::test_no_items_and_no_rows_that_count_give_zero[reference-dtype1]",
    ),
    Mutant(
        "the mean counts ignored rows",
        OP,
        "items = (labels >= 0).sum()",
        "items = (labels >= -1).sum()",
        f"{HERE}/test_op.py::test_torchs_own[reference-0.0-mean]",
    ),
]
