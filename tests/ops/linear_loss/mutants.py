"""Bugs to plant into the linear losses; each must turn its test red."""

from __future__ import annotations

from ops.mutant import Mutant

AUTOGRAD = "aitrain/ops/linear_loss/autograd.py"
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
        f"{HERE}/test_chunks.py::test_small_parts_are_not_lost_in_a_large_sum",
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
    Mutant(
        "a chunk is larger than its budget",
        CHUNKS,
        "budget // (classes * hidden.element_size()) // tile * tile",
        "(budget // (classes * hidden.element_size()) // tile + 1) * tile",
        f"{HERE}/test_chunks.py::test_a_chunk_keeps_to_its_budget_and_none_is_much_smaller",
    ),
    Mutant(
        "the bound keeps ignored rows first",
        CHUNKS,
        "torch.argsort((targets < 0)",
        "torch.argsort((targets >= 0)",
        f"{HERE}/test_chunks.py::test_a_bound_of_rows_instead_of_counting_them[3]",
    ),
    Mutant(
        "a frozen weight's gradient is computed",
        CHUNKS,
        "if self.wanted[1]:",
        "if self.head is not None:",
        f"{HERE}/test_autograd.py::test_a_frozen_weight_costs_no_product[True-True]",
    ),
    Mutant(
        "a negative scale predicts the least likely class",
        CHUNKS,
        "if head.terms.logit_scale >= 0 else",
        "if head is not None else",
        f"{HERE}/test_measure.py::test_a_negative_scale_turns_the_order_round",
    ),
    Mutant(
        "the first gradient is scaled a second time",
        AUTOGRAD,
        "gradients, ctx.gradients = ctx.gradients, None",
        "gradients = ctx.gradients",
        f"{HERE}/test_autograd.py::test_gradients_add_up_where_they_are_kept[False-reference]",
    ),
    Mutant(
        "the upstream gradient is dropped",
        AUTOGRAD,
        "times_upstream_(gradient, upstream)",
        "pass",
        f"{HERE}/test_op.py::test_sum_with_each_term[reference-True-plain]",
    ),
    Mutant(
        "compiled code drops the upstream gradient",
        AUTOGRAD,
        "(g * upstream).to(dtype)",
        "g.to(dtype)",
        f"{HERE}/test_autograd.py::test_compiled_code_equals_eager[reference]",
    ),
    Mutant(
        "compiled code rounds the sum before it is divided",
        AUTOGRAD,
        "return losses.sum(), *_filled(gradients, hidden.device)",
        "return losses.sum(), *_filled(_typed(gradients, hidden, weight, bias), hidden.device)",
        f"{HERE}/test_autograd.py::test_a_half_holds_the_mean_of_gradients_whose_sum_it_cannot[True]",
    ),
    Mutant(
        "autocast reaches the sums",
        AUTOGRAD,
        "torch.autocast(tensor.device.type, enabled=False)",
        "torch.autocast(tensor.device.type, enabled=torch.is_autocast_enabled(tensor.device.type))",
        f"{HERE}/test_op.py::test_autocast[reference-dtype0]",
    ),
    Mutant(
        "the backward pass forgets the entropy",
        AUTOGRAD,
        "saved, upstream, wanted, options.mean, options.entropy)",
        "saved, upstream, wanted, options.mean, False)",
        f"{HERE}/test_op.py::test_one_statistic_alone[reference-1]",
    ),
    Mutant(
        "the mean counts ignored rows",
        OP,
        "num_items = (labels >= 0).sum().clamp(min=1)",
        "num_items = (labels >= -1).sum().clamp(min=1)",
        f"{HERE}/test_op.py::test_mean[reference-odd-dtype0]",
    ),
    Mutant(
        "both directions are added, not averaged",
        OP,
        "own, chunk_bytes=chunk_bytes, ignore_index=-1)) / 2",
        "own, chunk_bytes=chunk_bytes, ignore_index=-1))",
        f"{HERE}/test_op.py::test_info_nce_with_a_learned_scale[reference-symmetric-dtype0]",
    ),
]
