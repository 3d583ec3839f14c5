"""The oracle: every document alone, scores and softmax written out, in float64; and packs to try."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

PACKS = {
    "one document": [17],
    "single tokens": [1, 1, 1],
    "mixed": [5, 1, 9, 1, 20, 9, 19],
    "empty among them": [0, 4, 0, 0, 7, 0],
    "padding at the end": [6, 11, 7],
}
PATTERNS: dict[str, dict[str, Any]] = {
    "causal": {},
    "both ways": {"causal": False},
    "window": {"window": 4},
    "window of one": {"window": 1},
    "window both ways": {"window": 3, "causal": False},
    "window beyond": {"window": 100},
    "softcap": {"softcap": 1.5},
    "softcap in a window": {"softcap": 1.5, "window": 5, "scale": 0.7},
    "scale": {"scale": 0.3},
}


def tensors(
    lengths: Sequence[int], heads: tuple[int, int] = (4, 2), width: int = 8, dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    random = torch.Generator(device="cpu").manual_seed(sum(lengths) + 7 * len(lengths))
    total = sum(lengths)
    shapes = ((total, heads[0], width), (total, heads[1], width), (total, heads[1], width))
    return [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def bounds(lengths: Sequence[int], device: str = "cpu") -> torch.Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)


def alone(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """One document, (L, H, D), in the type of the arguments."""
    length, heads, width = q.shape
    out = []
    for head in range(heads):
        shared = head // (heads // k.shape[1])
        scores = q[:, head] @ k[:, shared].T * (width**-0.5 if scale is None else scale)
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        for i in range(length):
            row = torch.tensor(
                [(j > i and causal) or (window is not None and abs(i - j) >= window) for j in range(length)],
                dtype=torch.bool,
                device=q.device,
            )
            out.append(scores[i].masked_fill(row, float("-inf")).softmax(0) @ v[:, shared])
    return torch.stack(out).unflatten(0, (heads, length)).transpose(0, 1)


def each_alone(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: Sequence[int], **options: Any
) -> torch.Tensor:
    q, k, v = q.double(), k.double(), v.double()
    parts = zip(*(x.split(list(lengths)) for x in (q, k, v)), strict=True)
    return torch.cat([alone(*part, **options) for part in parts if len(part[0])])
