"""Attention of packed sequences: the public function, which checks, chooses and calls a backend."""

from __future__ import annotations

import torch

from aitrain.errors import ShapeError
from aitrain.ops.attention.choice import HALF, backend_for, request_of
from aitrain.ops.attention.documents import Documents
from aitrain.ops.attention.pattern import Pattern

# T = tokens of the pack, H = heads, D = width of a head


def packed_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int | None = None,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attend within each document of a pack, as if it were alone.

    The best backend that is there runs: flash-attn 3 or 2, PyTorch's varlen kernels, flex_attention, PyTorch's plain
    attention. Call `attend` with one `Documents` for all layers to spare the later ones what the first worked out.

    Args:
        q: Queries, shape (T, H, D).
        k: Keys, shape (T, Hk, D) with H a multiple of Hk: query heads h * H / Hk and on share key head h.
        v: Values, shape (T, Hk, Dv).
        cu_seqlens: Where each document begins, and the end of the last: shape (documents + 1,), rising from 0 to T.
        max_seqlen: Tokens of the longest document or any upper bound; None = T.
        causal: Whether a query sees no later key.
        window: Keys a query sees at most on one side, itself included; None = all.
        scale: Factor on query times key; None = 1 / sqrt(D).
        softcap: Scores become softcap * tanh(score / softcap); None = they stay.
        dropout: Share of the weights that is dropped.

    Returns:
        Shape (T, H, Dv), in the type of `q` (under autocast, in autocast's).

    Raises:
        ShapeError: Shapes, types, devices or boundaries do not fit.
        RecipeError: An option makes no sense, or `AITRAIN_ATTENTION` names a backend that cannot do this.
    """
    documents = Documents(cu_seqlens, q.shape[0], max_seqlen)
    return attend(q, k, v, documents, Pattern(causal, window, scale, softcap, dropout))


@torch.compiler.disable  # the choice and plans on the host are no graph; the backends compile what they want compiled
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, pattern: Pattern) -> torch.Tensor:
    """Attend within each document of a pack: `packed_attention` for callers that keep the documents.

    Args:
        q: Queries, shape (T, H, D).
        k: Keys, shape (T, Hk, D).
        v: Values, shape (T, Hk, Dv).
        documents: The documents of the T tokens.
        pattern: What a query sees.

    Returns:
        Shape (T, H, Dv).

    Raises:
        ShapeError: Shapes, types or devices do not fit.
    """
    q, k, v = _cast(q, k, v)
    _check(q, k, v, documents)
    return backend_for(request_of(q, k, v, pattern)).backend.run(q, k, v, documents, pattern)


def _cast(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """What autocast does to the arguments of PyTorch's own attention; it does not know the other backends."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    wanted = torch.get_autocast_dtype(device)
    return [x.to(wanted) if x.dtype in (*HALF, torch.float32) else x for x in tensors]


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> None:
    shown = ", ".join(f"{name} {tuple(x.shape)}" for name, x in (("q", q), ("k", k), ("v", v)))
    if not (q.dim() == k.dim() == v.dim() == 3):
        raise ShapeError(f"{shown}: each must be of shape (tokens, heads, width)")
    if not (q.shape[0] == k.shape[0] == v.shape[0] == documents.total):
        raise ShapeError(f"{shown}: the first number must be the {documents.total} tokens of the pack")
    if q.shape[2] != k.shape[2] or k.shape[1] != v.shape[1] or not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ShapeError(f"{shown}: keys need the width of queries, and as many heads as values, which divide q's")
    if not (q.dtype == k.dtype == v.dtype):
        raise ShapeError(f"q is {q.dtype}, k {k.dtype}, v {v.dtype}: give one type")
    if not (q.device == k.device == v.device == documents.cu_seqlens.device):
        where = ", ".join(str(x.device) for x in (q, k, v, documents.cu_seqlens))
        raise ShapeError(f"q, k, v and cu_seqlens are on {where}: put them on one device")
