"""The chunked engine: matrix products on blocks of rows, with one row pass between them.

Ignored rows are dropped before the first product. The weight's gradient is summed in float32 over the chunks, because a
sum in bfloat16 loses a little with each of them. Nothing waits for the GPU, and every sum has a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from aitrain.ops.cross_entropy.dispatch import row_passes
from aitrain.ops.cross_entropy.rows import Statistics, zeros
from aitrain.ops.cross_entropy.terms import LossTerms

CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 1 << 30}
"""Logits held at a time. A GPU's matrix products want thousands of rows; a CPU's row pass wants its cache."""

Wanted = tuple[bool, bool, bool]


class Gradients(NamedTuple):
    """Gradients of hidden, weight and bias; None if not wanted."""

    hidden: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None


@dataclass(frozen=True)
class Head:
    """The linear layer that makes logits."""

    weight: torch.Tensor
    """`(V, H)`."""

    bias: torch.Tensor | None
    """`(V,)`."""

    terms: LossTerms
    chunk_bytes: int

    valid_rows: int | None
    """Upper bound of the rows that are not ignored, known without asking the GPU; None = count them on the CPU, and
    drop none on a GPU."""


def forward(
    hidden: torch.Tensor, head: Head, targets: torch.Tensor, scale: torch.Tensor, wanted: Wanted
) -> tuple[torch.Tensor, Gradients]:
    """Compute the loss of each row and, in the same pass, the gradients of their sum.

    Args:
        hidden: `(M, H)`, in the type of the matrix products.
        head: The layer; its weight in the same type.
        targets: int64 `(M,)`, -1 = ignored.
        scale: Scalar that multiplies losses and gradients.
        wanted: Whether gradients of hidden, weight, bias are wanted.

    Returns:
        `scale * loss` `(M,)`, and the gradients.
    """
    passes, sums = row_passes(hidden), _Sums(hidden, head, wanted)
    losses = hidden.new_zeros(len(hidden), dtype=_wide(hidden))
    for chunk, x, labels in _chunks(hidden, head, targets):
        logits = _logits(x, head)
        chunk.put(losses, passes.loss_and_gradient_(logits, labels, scale, head.terms))
        sums.add(chunk, x, logits)
        del logits  # before the next ones are made
    return _guarded(losses, head, targets), sums.result(hidden)


def statistics(
    hidden: torch.Tensor, head: Head, targets: torch.Tensor, mean: bool = True, entropy: bool = True
) -> Statistics:
    """Measure the logits of each row without keeping them.

    Args:
        hidden: `(M, H)`.
        head: The layer.
        targets: int64 `(M,)`, -1 = ignored.
        mean: Whether the mean is wanted.
        entropy: Whether the entropy is wanted.
    """
    passes = row_passes(hidden)
    out = zeros(len(hidden), _wide(hidden), hidden.device)
    for chunk, x, labels in _chunks(hidden, head, targets):
        for whole, part in zip(
            out, passes.statistics(_logits(x, head), labels, head.terms, mean, entropy), strict=True
        ):
            chunk.put(whole, part)
    return out._replace(lse=_guarded(out.lse, head, targets))


def measured(hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of each row (0 where ignored) and its likeliest class (-1 where ignored).

    Args:
        hidden: `(M, H)`.
        head: The layer.
        targets: int64 `(M,)`, -1 = ignored.
    """
    passes = row_passes(hidden)
    losses, best = hidden.new_zeros(len(hidden), dtype=_wide(hidden)), torch.full_like(targets, -1)
    for chunk, x, labels in _chunks(hidden, head, targets):
        logits = _logits(x, head)
        found = passes.statistics(logits, labels, head.terms, mean=False, entropy=False)
        chunk.put(losses, found.lse - found.picked)
        likeliest = logits.argmax(dim=1) if head.terms.logit_scale >= 0 else logits.argmin(dim=1)
        chunk.put(best, torch.where(labels >= 0, likeliest, -1))
        del logits  # before the next ones are made
    return _guarded(losses, head, targets), best


def backward(
    hidden: torch.Tensor,
    head: Head,
    targets: torch.Tensor,
    saved: Statistics,
    upstream: Statistics,
    wanted: Wanted,
    mean: bool = True,
    entropy: bool = True,
) -> Gradients:
    """Compute the gradients of `statistics` from logits made a second time.

    Args:
        hidden: `(M, H)`.
        head: The layer.
        targets: int64 `(M,)`, -1 = ignored.
        saved: What `statistics` gave.
        upstream: Gradient with regard to each of them.
        wanted: Whether gradients of hidden, weight, bias are wanted.
        mean: Whether the mean was measured.
        entropy: Whether the entropy was measured.
    """
    passes, sums = row_passes(hidden), _Sums(hidden, head, wanted)
    for chunk, x, labels in _chunks(hidden, head, targets):
        logits = _logits(x, head)
        parts = Statistics(*map(chunk.get, saved)), Statistics(*map(chunk.get, upstream))
        passes.gradient_(logits, labels, *parts, head.terms, mean, entropy)
        sums.add(chunk, x, logits)
        del logits  # before the next ones are made
    return sums.result(hidden)


@dataclass(frozen=True)
class _Chunk:
    """Some rows: a slice of all, or an index into them."""

    rows: slice | torch.Tensor

    def get(self, whole: torch.Tensor) -> torch.Tensor:
        return whole[self.rows] if isinstance(self.rows, slice) else whole.index_select(0, self.rows)

    def put(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        if isinstance(self.rows, slice):
            whole[self.rows] = part
        else:
            whole.index_copy_(0, self.rows, part)


def _chunks(
    hidden: torch.Tensor, head: Head, targets: torch.Tensor
) -> Iterator[tuple[_Chunk, torch.Tensor, torch.Tensor]]:
    index = _counting_rows(targets, None if hidden.device.type == "cpu" else head.valid_rows)
    rows = len(hidden) if index is None else len(index)
    if rows == 0:
        return
    step = _chunk_rows(rows, len(head.weight), hidden, head.chunk_bytes)
    for first in range(0, rows, step):
        some = slice(first, min(first + step, rows))
        chunk = _Chunk(some if index is None else index[some])
        yield chunk, chunk.get(hidden), chunk.get(targets)


def _counting_rows(targets: torch.Tensor, valid_rows: int | None) -> torch.Tensor | None:
    """Return the rows that are not ignored, in their order, or None for all of them.

    A GPU cannot be asked how many there are without waiting for it: with `valid_rows` the index has that length, the
    rows that count first.
    """
    if targets.device.type == "cpu" and valid_rows is None:
        index = (targets >= 0).nonzero()[:, 0]
        return None if len(index) == len(targets) else index
    if valid_rows is None or valid_rows >= len(targets):
        return None
    return torch.argsort((targets < 0).to(torch.int8), stable=True)[:valid_rows]


def _chunk_rows(rows: int, classes: int, hidden: torch.Tensor, budget: int) -> int:
    """Return the rows of a chunk: within the budget, a multiple of what the device's tiles like, none much smaller."""
    tile = 256 if hidden.is_cuda else 16
    most = max(tile, budget // (classes * hidden.element_size()) // tile * tile)
    chunks = -(-rows // most)
    return -(-rows // (chunks * tile)) * tile


def _logits(x: torch.Tensor, head: Head) -> torch.Tensor:
    weight = head.weight.t()
    return torch.mm(x, weight) if head.bias is None else torch.addmm(head.bias, x, weight)


class _Sums:
    """Collects the gradients of hidden, weight and bias over the chunks."""

    def __init__(self, hidden: torch.Tensor, head: Head, wanted: Wanted) -> None:
        self.head, self.wanted = head, wanted
        self.hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wanted[0] else None
        self.weight: torch.Tensor | None = None
        self.bias: torch.Tensor | None = None

    def add(self, chunk: _Chunk, x: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add one chunk's part.

        Args:
            chunk: Its rows.
            x: Their hidden states.
            gradient: Gradient of their logits.
        """
        if self.hidden is not None:
            chunk.put(self.hidden, torch.mm(gradient, self.head.weight))
        if self.wanted[1]:
            self.weight = _add_product(self.weight, gradient, x)
        if self.wanted[2]:
            part = gradient.sum(dim=0, dtype=_wide(x))
            self.bias = part if self.bias is None else self.bias.add_(part)

    def result(self, hidden: torch.Tensor) -> Gradients:
        """Return the gradients: hidden's in its own type, the others in float32 (float64)."""
        weight, bias = self.weight, self.bias
        if self.wanted[1] and weight is None:
            weight = hidden.new_zeros(self.head.weight.shape, dtype=_wide(hidden))
        if self.wanted[2] and bias is None:
            bias = hidden.new_zeros(len(self.head.weight), dtype=_wide(hidden))
        return Gradients(self.hidden, weight, bias)


def _add_product(total: torch.Tensor | None, gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return total + gradient^T x, summed in float32 (float64) whatever the type of the factors."""
    wide = _wide(x)
    if x.dtype == wide:
        return torch.mm(gradient.t(), x) if total is None else total.addmm_(gradient.t(), x)
    if x.is_cuda and torch.version.hip is None:
        if total is None:
            return torch.mm(gradient.t(), x, out_dtype=wide)
        return torch.addmm(total, gradient.t(), x, out_dtype=wide, out=total)
    if x.is_cuda:  # no product into float32 here: each chunk's own sum is rounded once
        part = torch.mm(gradient.t(), x)
        return part.to(wide) if total is None else total.add_(part)
    gradient, x = gradient.to(wide), x.to(wide)
    return torch.mm(gradient.t(), x) if total is None else total.addmm_(gradient.t(), x)


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _guarded(values: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
    """Return the values, or NaN when more rows count than the caller said: dropped rows must not pass in silence."""
    if head.valid_rows is None:
        return values
    return torch.where((targets >= 0).sum() > head.valid_rows, float("nan"), values)
