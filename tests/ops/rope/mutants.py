"""Bugs to plant into the rotary embedding; each must turn its test red."""

from __future__ import annotations

from ops.mutant import Mutant

KERNEL = "aitrain/ops/rope/kernel.py"
OP = "aitrain/ops/rope/op.py"
HERE = "tests/ops/rope"
HEADS = f"{HERE}/test_kernel.py::test_heads[more queries than keys-dtype0-halves]"
NEIGHBOURS = f"{HERE}/test_kernel.py::test_heads[more queries than keys-dtype0-neighbours]"
PACKED = f"{HERE}/test_kernel.py::test_packed_positions[kind0-2]"

MUTANTS = [
    Mutant("wrong sign", KERNEL, "qa * c - qb * s", "qa * c + qb * s", HEADS),
    Mutant("keys are not rotated", KERNEL, "ka * c - kb * s, kb * c + ka * s", "ka, kb", HEADS),
    Mutant("gradient turns forward", KERNEL, "        s = -s\n", "        s = s\n", HEADS),
    Mutant(
        "second half one feature late",
        KERNEL,
        "col + HALF, mask=inside, other=0.0)",
        "col + HALF - 1, mask=inside, other=0.0)",
        HEADS,
    ),
    Mutant(
        "neighbours are stored as halves",
        KERNEL,
        "tl.reshape(tl.join(a, b), (HEADS, 2 * BLOCK))",
        "tl.reshape(tl.join(b, a), (HEADS, 2 * BLOCK))",
        NEIGHBOURS,
    ),
    Mutant(
        "positions are counted, not read",
        KERNEL,
        "        at = row * table_token\n",
        "        at = token * table_token\n",
        PACKED,
    ),
    Mutant(
        "positions of the first sequence for all",
        KERNEL,
        "positions_ptr + batch * positions_batch",
        "positions_ptr + 0 * positions_batch",
        PACKED,
    ),
    Mutant(
        "one table for all sequences",
        KERNEL,
        "at = batch * table_batch + token * table_token",
        "at = token * table_token",
        f"{HERE}/test_kernel.py::test_a_table_per_sequence_or_for_all[1-2]",
    ),
    Mutant(
        "other features are left out",
        KERNEL,
        "    if REST > 0:\n",
        "    if REST > 99:\n",
        f"{HERE}/test_kernel.py::test_other_features_pass[6-halves]",
    ),
    Mutant(
        "read at the strides of the output",  # the other way round would write outside and end the process
        KERNEL,
        "    q_at = batch * q_batch + token * q_token + q.to(tl.int64) * q_head",
        "    q_at = batch * q_out_batch + token * q_out_token + q.to(tl.int64) * q_out_head",
        f"{HERE}/test_kernel.py::test_layouts[columns]",
    ),
    Mutant(
        "only the first group of heads",
        KERNEL,
        "q = group * Q_BLOCK + tl.arange(0, Q_BLOCK)",
        "q = tl.arange(0, Q_BLOCK)",
        f"{HERE}/test_kernel.py::test_heads[several programs per token-dtype0-halves]",
    ),
    Mutant(
        "foreign memory is read",
        KERNEL,
        " & (row >= 0) & (row < table_rows)",
        "",
        f"{HERE}/test_kernel.py::test_a_position_outside_the_table_shows",
    ),
    Mutant(
        "compiled gradient turns forward",
        OP,
        "*ctx.saved_tensors, *how, not back)",
        "*ctx.saved_tensors, *how, back)",
        f"{HERE}/test_op.py::test_compiled_whole[reference]",
    ),
    Mutant(
        "in place where gradients are recorded",
        OP,
        "torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)",
        "False",
        f"{HERE}/test_op.py::test_what_does_not_fit_is_refused",
    ),
]
