"""Bugs that the tests of adapted layers must notice."""

from ops.mutant import Mutant

_OP, _PRODUCTS, _GATED, _PROJECTION = (
    f"aitrain/ops/lora/{name}.py" for name in ("op", "products", "gated", "projection")
)
_TESTS = "tests/ops/lora"
_ALONE = f"{_TESTS}/test_op.py::test_gradcheck"
_SEVERAL = f"{_TESTS}/test_op.py::test_several_of_one_input[lead0-dtype1]"
_MLP = f"{_TESTS}/test_gated.py::test_values_and_gradients[reference-dense-dtype1-silu]"
MUTANTS = [
    Mutant(
        "the adapter's factor is forgotten in the forward pass",
        _PRODUCTS,
        "held.b.to(dtype).t(), alpha=scalings[at])",
        "held.b.to(dtype).t())",
        _ALONE,
    ),
    Mutant(
        "the adapters' way back to x is forgotten",
        _PRODUCTS,
        "return found if inner is None or stack is None else found.addmm_(inner, stack)",
        "return found",
        _ALONE,
    ),
    Mutant(
        "a's gradient lacks the factor",
        _PRODUCTS,
        "piece.addmm_(grad, held.b.to(dtype), beta=0, alpha=scalings[at])",
        "piece.addmm_(grad, held.b.to(dtype), beta=0)",
        _ALONE,
    ),
    Mutant(
        "b's gradient lacks the factor",
        _PRODUCTS,
        "narrow[:, columns[at]], beta=0, alpha=scalings[at])",
        "narrow[:, columns[at]], beta=0)",
        _ALONE,
    ),
    Mutant(
        "all projections take the first factor",
        _PRODUCTS,
        "held.b.to(dtype).t(), alpha=scalings[at])",
        "held.b.to(dtype).t(), alpha=scalings[0])",
        _SEVERAL,
    ),
    Mutant(
        "the ranks of earlier adapters are not skipped",
        _PRODUCTS,
        "        begin = end\n",
        "        begin = end - 1 if held.a is not None and len(held.a) == 2 else end\n",
        _SEVERAL,
    ),
    Mutant(
        "dx holds the last layer only",
        _PRODUCTS,
        "found = torch.mm(grad, weight) if found is None else found.addmm_(grad, weight)",
        "found = torch.mm(grad, weight)",
        _SEVERAL,
    ),
    Mutant(
        "the bias is dropped",
        _PRODUCTS,
        "out = torch.mm(x, weight.t()) if held.bias is None else torch.addmm(held.bias.to(dtype), x, weight.t())",
        "out = torch.mm(x, weight.t())",
        f"{_TESTS}/test_op.py::test_values_and_gradients",
    ),
    Mutant(
        "gradients of several A are views of one tensor",
        _PRODUCTS,
        ".to(held.a.dtype, copy=True)",
        ".to(held.a.dtype)",
        f"{_TESTS}/test_products.py::test_gradients_share_no_memory",
    ),
    Mutant(
        "4-bit weights are turned into numbers for nothing",
        _PRODUCTS,
        "    if wanted[0]:\n",
        "    if any(wanted):\n",
        f"{_TESTS}/test_products.py::test_weights_are_made_only_where_x_wants_a_gradient",
    ),
    Mutant(
        "a trained base layer is taken without a word",
        _PROJECTION,
        "if trained or (self.bias",
        "if (self.bias",
        f"{_TESTS}/test_op.py::test_what_does_not_fit_is_refused",
    ),
    Mutant(
        "the inner activation is kept",
        _OP,
        "        ctx.save_for_backward(x, *parts)\n",
        "        ctx.save_for_backward(x, torch.mm(x, x.t()), *parts)\n",
        f"{_TESTS}/test_op.py::test_only_the_input_is_kept",
    ),
    Mutant(
        "compiled code loses the gradients of the adapters",
        _OP,
        "gaps_closed(into_parts(grads[1:]), numbers), None, None, None",
        "gaps_closed(into_parts([None] * len(grads[1:])), numbers), None, None, None",
        f"{_TESTS}/test_op.py::test_the_compiler_sees_one_op_for_all",
    ),
    Mutant("gate and up are taken as one for the other", _GATED, "return [to_gate, None", "return [to_up, None", _MLP),
    Mutant(
        "the gate is always SiLU",
        _GATED,
        "    return products.forward(GATES[activation](gate, up)",
        "    return products.forward(swiglu(gate, up)",
        f"{_TESTS}/test_gated.py::test_values_and_gradients[reference-dense-dtype1-gelu]",
    ),
    Mutant(
        "the activation is kept",
        _GATED,
        "        ctx.save_for_backward(gate, up, *parts)\n        ctx.rest",
        "        ctx.save_for_backward(gate, up, *parts, GATES['silu'](gate, up))\n        ctx.rest",
        f"{_TESTS}/test_gated.py::test_x_gate_and_up_are_all_that_is_kept",
    ),
    Mutant(
        "the backward pass takes the gate's activation for the product",
        _GATED,
        "    inner = GATES[activation](gate, up)\n",
        "    inner = GATES[activation](gate, torch.ones_like(up))\n",
        _MLP,
    ),
]
