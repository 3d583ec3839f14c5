"""Every op of ours, forward and backward, over small and awkward shapes on the GPU.

As a program (`python every_op.py [PART ...]`) it only runs them, one launch each: what compute-sanitizer watches.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from aitrain.bench.ops.case import Case, Outputs, own_inputs, try_out

SHAPES: dict[str, Sequence[tuple[int, ...]]] = {
    "linear_loss": ((37, 65, 1003), (256, 128, 4096)),
    "cross_entropy": ((37, 1003), (1, 7), (5, 128257), (64, 32000)),
    "norms": ((37, 1001), (1, 1), (300, 2880), (7, 20001), (64, 16384)),
    "glu": ((37, 1001), (1, 1), (64, 2048)),
    "rope": ((37, 3, 1, 16), (64, 8, 2, 64), (65, 4, 4, 128)),
    "lora": ((37, 40, 24, 8, 72, 3), (1, 16, 16, 16, 16, 16), (256, 512, 512, 128, 1024, 16)),
    "nf4": ((37, 41), (1, 1), (300, 2880), (64, 16384)),
}
"""Part of the benchmark -> odd, tiny, wide; no width that only a fast path sees."""

CUDA = torch.device("cuda")


def cases() -> Iterator[tuple[str, Case]]:
    """Yield a name and a case for every op and shape."""
    for part, shapes in SHAPES.items():
        module = importlib.import_module(f"aitrain.bench.ops.parts.{part}")
        usual = module.SMALL_SHAPES
        for shape in shapes:
            module.SMALL_SHAPES = (shape,)
            found = list(module.cases(True))
            module.SMALL_SHAPES = usual
            for case in found:
                yield f"{part}: {case.op} {case.shape}", case
    for case in importlib.import_module("aitrain.bench.ops.parts.adamw").cases(True):
        yield f"adamw: {case.op} {case.shape}", case


def answer(case: Case, provider: str, inputs: dict[str, torch.Tensor]) -> Outputs:
    """Return outputs and gradients as a provider computes them.

    Args:
        case: An op at one shape.
        provider: Its name.
        inputs: Shared; the provider works on copies.
    """
    (found,) = (entry for entry in case.providers if entry.name == provider)
    return try_out(case, found.load(), own_inputs(case, inputs, tuple(inputs)))


def _main(parts: Sequence[str]) -> None:
    ran: list[Any] = []
    for name, case in cases():
        if not parts or name.split(":")[0] in parts:
            answer(case, "ours", case.inputs(CUDA))
            torch.cuda.synchronize()
            ran.append(name)
    print(f"{len(ran)} small cases ran")
    assert ran, f"no part is called {parts}: {', '.join([*SHAPES, 'adamw'])}"


if __name__ == "__main__":
    _main(sys.argv[1:])
