"""Bugs that the tests of the 4-bit weights must notice."""

from ops.mutant import Mutant

_REFERENCE, _KERNEL, _PACKED = (f"aitrain/ops/nf4/{name}.py" for name in ("reference", "kernel", "packed"))
_TESTS = "tests/ops/nf4"
_SHARED = f"{_TESTS}/test_packed.py::test_every_bit_as_bitsandbytes_said"
_BITS = f"{_TESTS}/test_kernel.py::test_every_bit[shape3-dtype0-4]"

MUTANTS = [
    Mutant(
        "the low half of a byte comes first",
        _REFERENCE,
        "torch.stack([code.float().repeat_interleave(16), code.float().repeat(16)], dim=1)",
        "torch.stack([code.float().repeat(16), code.float().repeat_interleave(16)], dim=1)",
        f"{_SHARED}[reference]",
    ),
    Mutant(
        "a digit of the code",
        _REFERENCE,
        "0.24611230194568634",
        "0.24621230194568634",
        f"{_TESTS}/test_reference.py::test_the_codes_are_those_of_the_paper",
    ),
    Mutant(
        "the last, broken block takes the scale before it",
        _REFERENCE,
        ".mul_(of_blocks[whole])",
        ".mul_(of_blocks[whole - 1])",
        f"{_TESTS}/test_reference.py::test_every_number_is_its_code_times_its_scale[33]",
    ),
    Mutant(
        "the offset is forgotten",
        _REFERENCE,
        " * of_each + offset.float()",
        " * of_each",
        f"{_TESTS}/test_reference.py::test_nested_scales",
    ),
    Mutant(
        "the kernel swaps the halves",
        _KERNEL,
        "tl.interleave(first, second)",
        "tl.interleave(second, first)",
        _BITS,
    ),
    Mutant("the kernel forgets the offset", _KERNEL, " * of_codes + tl.load(offset_ptr)", " * of_codes", _BITS),
    Mutant(
        "one nested scale for all",
        _KERNEL,
        "nested_absmax_ptr + block // NESTED_BLOCK",
        "nested_absmax_ptr + block * 0",
        _BITS,
    ),
    Mutant(
        "every program writes the first blocks",
        _KERNEL,
        "tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)",
        "tl.arange(0, GROUP).to(tl.int64)",
        _BITS,
    ),
    Mutant(
        "rounded before it is scaled",
        _KERNEL,
        "(tl.load(code_ptr + (byte & 15)) * scale[:, None]).to(element)",
        "(tl.load(code_ptr + (byte & 15)).to(element) * scale[:, None]).to(element)",
        f"{_TESTS}/test_kernel.py::test_every_bit[shape3-dtype1-4]",
    ),
    Mutant("FP4 read as NF4", _PACKED, "            self.code,\n", "            None,\n", f"{_SHARED}[reference]"),
    Mutant(
        "nested scales read as plain ones",
        _PACKED,
        "if not state.nested:",
        "if state.nested is not None:",
        f"{_SHARED}[reference]",
    ),
    Mutant(
        "weights repacked for a CPU are read as if they were not",
        _PACKED,
        'if getattr(state, "packing_format_for_cpu", False):',
        'if getattr(state, "packing_format", False):',
        f"{_TESTS}/test_packed.py::test_what_is_no_4_bit_weight",
    ),
]
