"""Whether a provider is correct; others are not timed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

PIECE = 1 << 26
"""Elements compared per chunk, so that the comparison itself takes little memory."""


def largest_error(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """Return the largest relative error, in 2-norms, of several tensors; infinite for a wrong shape or a NaN.

    Args:
        found: What was computed.
        exact: What should have been.
    """
    if len(found) != len(exact):
        return float("inf")
    return max((relative_error(a, b) for a, b in zip(found, exact, strict=True)), default=0.0)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return |found - exact| / |exact| in 2-norms; the absolute error where the exact answer is 0.

    Args:
        found: What was computed.
        exact: What should have been.
    """
    if found.shape != exact.shape:
        return float("inf")
    difference = scale = 0.0
    pieces = zip(found.detach().reshape(-1).split(PIECE), exact.detach().reshape(-1).split(PIECE), strict=True)
    for mine, theirs in pieces:
        wide = theirs.double()
        difference += float((mine.double() - wide).square().sum())
        scale += float(wide.square().sum())
    error = (difference / scale if scale else difference) ** 0.5
    return error if error == error else float("inf")
