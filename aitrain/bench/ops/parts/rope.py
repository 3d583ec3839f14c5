"""Rotary positions on queries and keys: ours, Liger, and the way transformers writes it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from aitrain.bench.ops.case import Case, Function, Inputs, Outputs, Provider, Work, exact_by_autograd, plain

SHAPES = ((8192, 32, 8, 128), (8192, 16, 16, 64))
"""Tokens, heads of queries, heads of keys, width of a head."""

SMALL_SHAPES = ((512, 8, 2, 64),)
BASE = 5e5
TENSORS = ("q", "k")


def cases(small: bool) -> Iterator[Case]:
    """Yield the cases, headline shapes first.

    Args:
        small: Shapes for a CPU.
    """
    for tokens, queries, keys, width in SMALL_SHAPES if small else SHAPES:
        size = 2 * tokens * (queries + keys) * width * (4 if small else 2)
        yield Case(
            op="rope",
            shape=f"{tokens} tokens, {queries}+{keys} heads of {width}",
            inputs=partial(_inputs, tokens, queries, keys, width),
            exact=exact_by_autograd(_formula, TENSORS, ("above_q", "above_k")),
            providers=[
                Provider("ours", _ours),
                *plain(_formula),
                Provider("Liger (Triton)", _liger, "liger-kernel", overwrites=(*TENSORS, "above_q", "above_k")),
            ],
            work={"forward": Work(bytes=size), "backward": Work(bytes=size), "both": Work(bytes=2 * size)},
            leaves=TENSORS,
            upstream=("above_q", "above_k"),
        )


def _inputs(tokens: int, queries: int, keys: int, width: int, device: torch.device) -> Inputs:
    """Heads before tokens, as a view of what the projections write: tokens before heads."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def heads(count: int) -> torch.Tensor:
        return torch.randn(1, tokens, count, width, device=device, dtype=dtype).transpose(1, 2)

    rates = BASE ** (-torch.arange(0, width, 2, device=device).float() / width)
    angles = torch.outer(torch.arange(tokens, device=device).float(), rates).repeat(1, 2)[None]
    found = {"q": heads(queries), "k": heads(keys), "above_q": heads(queries), "above_k": heads(keys)}
    return {**found, "cos": angles.cos().to(dtype), "sin": angles.sin().to(dtype)}


def _formula(inputs: Inputs) -> Outputs:
    """`apply_rotary_pos_emb` of transformers."""
    cos, sin = inputs["cos"].unsqueeze(1), inputs["sin"].unsqueeze(1)

    def half_turned(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((-second, first), dim=-1)

    return tuple(x * cos + half_turned(x) * sin for x in (inputs["q"], inputs["k"]))


def _ours() -> Function:
    from aitrain.ops.rope.op import rope_qk

    return lambda inputs: tuple(rope_qk(inputs["q"], inputs["k"], inputs["cos"], inputs["sin"]))


def _liger() -> Function:
    from liger_kernel.ops.rope import LigerRopeFunction as Fused

    return lambda inputs: Fused.apply(inputs["q"], inputs["k"], inputs["cos"], inputs["sin"])
