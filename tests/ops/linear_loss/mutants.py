"""Bugs to plant into the linear losses; each must turn its test red."""

from __future__ import annotations

from ops.mutant import Mutant

CHUNKS = "aitrain/ops/linear_loss/chunks.py"
OP = "aitrain/ops/linear_loss/op.py"
HERE = "tests/ops/linear_loss"
SAME = f"{HERE}/test_chunks.py::test_chunks_change_nothing[tiny]"

MUTANTS = [
    Mutant(
        "the last chunk's weight gradient alone",
        CHUNKS,
        "total.addmm_(gradient.t(), x)\n    if",
        "torch.mm(gradient.t(), x)\n    if",
        SAME,
    ),
    Mutant("the first chunk's bias gradient alone", CHUNKS, "self.bias.add_(part)", "self.bias", SAME),
    Mutant(
        "hidden's gradient of the first chunk everywhere",
        CHUNKS,
        "chunk.put(self.hidden, torch.mm(gradient, self.head.weight))",
        "self.hidden[: len(gradient)] = torch.mm(gradient, self.head.weight)",
        SAME,
    ),
    Mutant(
        "ignored rows go through the products",
        CHUNKS,
        "return None if len(index) == len(targets) else index",
        "return None",
        f"{HERE}/test_chunks.py::test_rows_without_a_target_never_reach_the_products",
    ),
    Mutant(
        "the weight's gradient is rounded with every chunk",
        CHUNKS,
        "gradient, x = gradient.to(wide), x.to(wide)\n"
        "    return torch.mm(gradient.t(), x) if total is None else total.addmm_(gradient.t(), x)",
        "part = torch.mm(gradient.t(), x)\n    return (part if total is None else total.to(x.dtype) + part).to(wide)",
        f"{HERE}/test_chunks.py::test_the_weights_gradient_is_summed_in_float32",
    ),
    Mutant(
        "too small a bound passes in silence",
        CHUNKS,
        'float("nan"), values)',
        "values, values)",
        f"{HERE}/test_chunks.py::test_a_bound_of_rows_keeps_those_that_count_and_a_broken_one_shows",
    ),
    Mutant(
        "a chunk is one row too long",
        CHUNKS,
        "slice(first, min(first + step, rows))",
        "slice(first, min(first + step + 1, rows))",
        SAME,
    ),
    Mutant(
        "no bias",
        CHUNKS,
        "torch.addmm(head.bias, x, weight)",
        "torch.mm(x, weight)",
        f"{HERE}/test_op.py::test_sum_with_each_term[reference-True-plain]",
    ),
    Mutant(
        "the temperature is left out",
        OP,
        "linear_cross_entropy(queries * scale, keys",
        "linear_cross_entropy(queries, keys",
        f"{HERE}/test_op.py::test_info_nce_with_a_learned_scale[reference-own key-dtype0]",
    ),
]
