"""Dequantisation of 4-bit weights: ours, bitsandbytes, torchao, and plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from aitrain.bench.ops.case import Case, Function, Inputs, Outputs, Provider, Work, plain
from aitrain.ops.nf4 import reference

SHAPES = ((53248, 4096), (14336, 4096))
"""All weights of a decoder layer of Llama 8B below each other (218 M numbers), and one of them."""

SMALL_SHAPES = ((512, 1024),)
BLOCK, NESTED_BLOCK = 64, 256


def cases(small: bool) -> Iterator[Case]:
    """Yield the cases, headline shapes first.

    Args:
        small: Shapes for a CPU.
    """
    for shape in SMALL_SHAPES if small else SHAPES:
        for nested in (True, False):
            yield _case(shape, nested, 4 if small else 2)


def _case(shape: tuple[int, int], nested: bool, element: int) -> Case:
    count = shape[0] * shape[1]
    blocks = -(-count // BLOCK)
    of_scales = blocks + 4 * -(-blocks // NESTED_BLOCK) if nested else 4 * blocks
    formula = partial(_formula, shape)
    return Case(
        op="nf4, nested scales" if nested else "nf4",
        shape=f"{shape[0]}x{shape[1]}",
        inputs=partial(_inputs, shape, nested),
        exact=lambda inputs: formula({**inputs, "like": inputs["like"].double()}),
        providers=[
            Provider("ours", partial(_ours, shape)),
            *plain(formula),
            Provider("bitsandbytes", partial(_bitsandbytes, shape), "bitsandbytes"),
            # it holds its scales in 8 bits of its own, so the weights are other ones by that much
            *([Provider("torchao", partial(_torchao, shape), "torchao", tolerance=2e-2)] if nested else []),
        ],
        work={"forward": Work(bytes=count / 2 + of_scales + element * count)},
    )


def _inputs(shape: tuple[int, int], nested: bool, device: torch.device) -> Inputs:
    """Random codes, and scales between a half and one and a half; `like` has the type that is wanted."""
    count = shape[0] * shape[1]
    blocks = -(-count // BLOCK)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    found = {
        "like": torch.empty(1, dtype=dtype, device=device),
        "packed": torch.randint(256, (-(-count // 2), 1), dtype=torch.uint8, device=device),
        "code": torch.tensor(reference.NF4, dtype=torch.float32, device=device),
    }
    if not nested:
        return {**found, "absmax": torch.rand(blocks, device=device) + 0.5}
    return {
        **found,
        "absmax": torch.randint(256, (blocks,), dtype=torch.uint8, device=device),
        "nested_absmax": torch.rand(-(-blocks // NESTED_BLOCK), device=device) / 4 + 0.25,
        "nested_code": torch.linspace(-1, 1, 256, device=device),
        "offset": torch.ones((), device=device),
    }


def _formula(shape: tuple[int, int], inputs: Inputs) -> Outputs:
    inner = (inputs.get("nested_absmax"), inputs.get("nested_code"), inputs.get("offset"))
    of_blocks = reference.scales(inputs["absmax"], *inner, NESTED_BLOCK)
    dtype = inputs["like"].dtype
    return (reference.dequantise(inputs["packed"], inputs["code"], of_blocks, BLOCK, shape, dtype),)


def _ours(shape: tuple[int, int]) -> Function:
    from aitrain.ops.nf4.op import nf4_dequantise

    def run(inputs: Inputs) -> Outputs:
        inner = (inputs.get("nested_absmax"), inputs.get("nested_code"), inputs.get("offset"))
        dtype = inputs["like"].dtype
        return (nf4_dequantise(inputs["packed"], inputs["absmax"], shape, dtype, BLOCK, inputs["code"], *inner),)

    return run


def _bitsandbytes(shape: tuple[int, int]) -> Function:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    def run(inputs: Inputs) -> Outputs:
        inner = None
        if "nested_absmax" in inputs:
            inner = QuantState(
                absmax=inputs["nested_absmax"],
                code=inputs["nested_code"],
                blocksize=NESTED_BLOCK,
                dtype=torch.float32,
            )
        state = QuantState(
            absmax=inputs["absmax"],
            shape=torch.Size(shape),
            code=inputs["code"],
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=inputs["like"].dtype,
            offset=inputs.get("offset"),
            state2=inner,
        )
        return (dequantize_4bit(inputs["packed"], state),)

    return run


def _torchao(shape: tuple[int, int]) -> Function:
    from torchao.quantization import NF4Tensor

    held: dict[int, Any] = {}  # a weight is quantised once, when it is first seen

    def run(inputs: Inputs) -> Outputs:
        at = inputs["packed"].data_ptr()
        if at not in held:
            held[at] = NF4Tensor.from_tensor(_formula(shape, inputs)[0], BLOCK, NESTED_BLOCK)
        return (held[at].get_original_weight(),)

    return run
