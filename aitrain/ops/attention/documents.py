"""Where the documents of a pack begin and end, computed once and shared by every layer."""

from __future__ import annotations

from typing import Any

import torch

from aitrain.errors import ShapeError


class Documents:
    """Documents that lie end to end in a pack, and what the backends derive from them.

    What a backend works out (lengths on the host, a block mask) is kept, so that the second layer finds it ready: build
    one per batch. On a GPU, building one reads nothing back; a wrong boundary is then an assertion of the device.

    Args:
        cu_seqlens: Where each document begins, and the end of the last one: int32 or int64, shape (documents + 1,),
            rising from 0 to `total`. Equal neighbours are an empty document.
        total: Tokens of the pack. All of them belong to some document: padding at the end is a document too.
        max_seqlen: Tokens of the longest document, or any upper bound; None = `total`.

    Raises:
        ShapeError: The boundaries are no such tensor, do not rise from 0 to `total`, or a document is longer than
            `max_seqlen`.
    """

    def __init__(self, cu_seqlens: torch.Tensor, total: int, max_seqlen: int | None = None) -> None:
        if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
            raise ShapeError(
                f"cu_seqlens is {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}: give int32 boundaries of shape "
                f"(documents + 1,), such as [0, 5, 9] for documents of 5 and 4 tokens"
            )
        self.cu_seqlens = cu_seqlens.to(torch.int32)
        self.total = total
        self.max_seqlen = total if max_seqlen is None else min(int(max_seqlen), total)
        self.derived: dict[Any, Any] = {}
        """What a backend worked out, under a key of its own."""
        steps = self.cu_seqlens.diff()
        sound = (self.cu_seqlens[0] == 0) & (self.cu_seqlens[-1] == total)
        sound = sound & ((steps >= 0) & (steps <= self.max_seqlen)).all()
        if cu_seqlens.device.type != "cpu":
            torch._assert_async(sound, "cu_seqlens must rise from 0 to the tokens of the pack by at most max_seqlen")
        elif not bool(sound):
            shown = self.cu_seqlens.tolist() if cu_seqlens.numel() < 20 else f"{self.cu_seqlens[:20].tolist()}..."
            raise ShapeError(
                f"cu_seqlens is {shown} with max_seqlen {max_seqlen}: it must rise from 0 to the {total} tokens of the "
                f"pack by at most max_seqlen (padding at the end of a pack is a document, too)"
            )

    def lengths(self) -> list[int]:
        """Return the tokens of each document, on the host (on a GPU this waits for it, once)."""
        if "lengths" not in self.derived:
            self.derived["lengths"] = self.cu_seqlens.diff().tolist()
        lengths: list[int] = self.derived["lengths"]
        return lengths

    def of_tokens(self) -> torch.Tensor:
        """Return the document of every token, int32 of shape (total,), without reading anything back."""
        if "of_tokens" not in self.derived:
            tokens = torch.arange(self.total, dtype=torch.int32, device=self.cu_seqlens.device)
            found = torch.searchsorted(self.cu_seqlens[1:].contiguous(), tokens, right=True, out_int32=True)
            self.derived["of_tokens"] = found
        of_tokens: torch.Tensor = self.derived["of_tokens"]
        return of_tokens


def documents_of(
    position_ids: torch.Tensor,
    real: torch.Tensor | None = None,
    max_seqlen: int | None = None,
    max_documents: int | None = None,
) -> Documents:
    """Find the documents of packed rows: one begins with every row and wherever the positions do not count on by one.

    Args:
        position_ids: Position of every token in its document, integers of shape (B, L).
        real: Which tokens are not padding, shape (B, L); None = all. A run of padding is a document of its own,
            whatever its positions, wherever it lies.
        max_seqlen: Upper bound of a document's tokens; None = L.
        max_documents: Upper bound of the documents in all rows. With it nothing is read back from the GPU: the list of
            boundaries is filled up with empty documents. None = count them.

    Returns:
        The documents of the rows laid end to end, B * L tokens.

    Raises:
        ShapeError: Shapes do not fit, or there are more documents than `max_documents` (on a GPU an assertion of the
            device).
    """
    if position_ids.dim() != 2 or position_ids.is_floating_point():
        raise ShapeError(f"position_ids is {_shown(position_ids)}: give integers of shape (rows, tokens)")
    if real is not None and real.shape != position_ids.shape:
        raise ShapeError(f"the padding mask is {_shown(real)}: it must fit position_ids {_shown(position_ids)}")
    rows, length = position_ids.shape
    device = position_ids.device
    begins = torch.ones(rows, length, dtype=torch.bool, device=device)
    if length:
        begins[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
        if real is not None:
            real = real.to(device=device, dtype=torch.bool)
            begins[:, 1:] &= real[:, 1:]
            begins[:, 1:] |= real[:, 1:] != real[:, :-1]
    flat, total = begins.flatten(), rows * length
    if max_documents is None:
        starts = flat.nonzero().flatten().to(torch.int32)
        bounds = torch.cat([starts, starts.new_full((1,), total)])
    else:
        bounds = _bounded(flat, max_documents)
    return Documents(bounds, total, length if max_seqlen is None else max_seqlen)


def _bounded(begins: torch.Tensor, most: int) -> torch.Tensor:
    """Boundaries in a list of fixed length, so that their number need not be known."""
    total = begins.numel()
    rank = begins.cumsum(0) - 1
    if total:
        fits = rank[-1] < most
        if begins.device.type != "cpu":
            torch._assert_async(fits, "there are more documents in the pack than max_documents")
        elif not bool(fits):
            raise ShapeError(f"there are {int(rank[-1]) + 1} documents in the pack, more than max_documents={most}")
    bounds = torch.full((most + 2,), total, dtype=torch.int32, device=begins.device)
    tokens = torch.arange(total, dtype=torch.int32, device=begins.device)
    slot = torch.where(begins, rank.clamp(max=most), most + 1)  # the last slot takes what begins nothing
    return bounds.scatter_(0, slot, tokens)[: most + 1]


def _shown(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
