"""Bugs that the tests of lora_linear must notice."""

from ops.mutant import Mutant

_OP = "aitrain/ops/lora/op.py"
_TEST = "tests/ops/lora/test_op.py"
MUTANTS = [
    Mutant(
        "the adapter's factor is forgotten in the forward pass",
        _OP,
        "b.to(dtype).t(), alpha=scaling)",
        "b.to(dtype).t())",
        f"{_TEST}::test_gradcheck",
    ),
    Mutant(
        "the adapter's way back to x is forgotten",
        _OP,
        "torch.mm(upstream, weight.to(dtype)).addmm_(inner, narrow_a, alpha=scaling)",
        "torch.mm(upstream, weight.to(dtype))",
        f"{_TEST}::test_gradcheck",
    ),
    Mutant(
        "a's gradient lacks the factor",
        _OP,
        "torch.mm(inner.t(), rows).to(a.dtype).mul_(scaling)",
        "torch.mm(inner.t(), rows).to(a.dtype)",
        f"{_TEST}::test_gradcheck",
    ),
    Mutant(
        "the bias is dropped",
        _OP,
        "out = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias.to(dtype), x, weight.t())",
        "out = torch.mm(x, weight.t())",
        f"{_TEST}::test_values_and_gradients",
    ),
    Mutant(
        "a trained base layer is taken without a word",
        _OP,
        "if weight.requires_grad or",
        "if False and weight.requires_grad or",
        f"{_TEST}::test_what_does_not_fit_is_refused",
    ),
    Mutant(
        "the inner activation is kept",
        _OP,
        "    ctx.save_for_backward(x, weight, a, b)\n",
        "    ctx.save_for_backward(x, weight, a, b, torch.mm(x, a.t()))\n",
        f"{_TEST}::test_only_the_input_is_kept",
    ),
]
