"""Packed rows in Hugging Face decoders: our attention function in their registry, which separates documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, masking_utils

from aitrain.errors import ModelError, ShapeError
from aitrain.ops.attention.documents import Documents, documents_of
from aitrain.ops.attention.op import attend
from aitrain.ops.attention.pattern import Pattern
from aitrain.ops.attention.sdpa import attend_masked

NAME = "aitrain_packed"
"""Under this name transformers knows our attention: `model.config._attn_implementation`."""

SERVED_LAYERS = {"full_attention", "sliding_attention"}
KEEP = "keep model.attention=sdpa, without packing"
_UNSERVED = {
    "s_aux": "attention sinks",
    "position_bias": "a bias on the scores",
    "output_attentions": "attention weights as an output",
    "cache": "a paged cache",
}

# B = rows, L = tokens of a row, H = heads, D = width of a head


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let a decoder attend within the documents of its rows, which are found from its position ids.

    Rows without restarting positions are attended as usual. Generation with a cache still works.

    Args:
        model: A causal language model of transformers.

    Raises:
        ModelError: A part of the model would still carry one document into the next.
    """
    fault = next(unserved(model), None)
    if fault is not None:
        raise ModelError(f"{type(model).__name__} does not support packed rows: {fault}: {KEEP}")
    register()
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise ModelError(f"{type(model).__name__} did not take the attention {NAME}: {KEEP}")


def unserved(model: PreTrainedModel) -> Iterator[str]:
    """Yield the reasons why a model does not support packed rows.

    Args:
        model: A model of transformers.

    Yields:
        One reason.
    """
    if not model._can_set_attn_implementation():
        yield "its attention cannot be replaced"
    if model.config.sub_configs:
        yield f"it consists of several models ({', '.join(sorted(model.config.sub_configs))})"
    if getattr(model, "_is_stateful", False):
        yield "its recurrent layers carry a state from token to token"
    if others := sorted(set(getattr(model.config, "layer_types", None) or ()) - SERVED_LAYERS):
        yield f"it has layers of the kind {', '.join(others)}"
    if getattr(model.config, "is_encoder_decoder", False):
        yield "its decoder attends to an encoder"


def register() -> None:
    """Register our attention and its mask function in transformers as `aitrain_packed`."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


class Seen:
    """The mask that transformers passes from the model to its layers: pattern and padding, without a square matrix.

    Args:
        causal: Whether a query sees no later key.
        window: Keys a query sees at most on one side, itself included; None = all.
        real: Which tokens are not padding, shape (B, L); None = all.
    """

    # no dataclass: FSDP takes those apart and puts copies together

    ndim = 4
    """Generation with a static cache makes the mask before the model does, which then takes it for a ready one."""

    def __init__(self, causal: bool, window: int | None, real: torch.Tensor | None) -> None:
        self.causal = causal
        self.window = window
        self.real = real
        self._told: torch.Tensor | None = None
        self._documents: Documents | None = None

    def contiguous(self) -> Seen:
        """Return itself, as generation requires of a mask."""
        return self

    def documents(self, told: torch.Tensor, make: Callable[[], Documents]) -> Documents:
        """Return the documents of a tensor, computed once for all layers.

        Args:
            told: Position ids or boundaries.
            make: Computes them.
        """
        if self._documents is None or self._told is not told:
            self._told, self._documents = told, make()
        return self._documents


@torch.compiler.disable
def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Seen | torch.Tensor | None = None,
    **options: Any,
) -> Seen | torch.Tensor:
    """Say what the layers see: transformers' mask function for our attention.

    Args:
        batch_size: Rows.
        q_length: Queries of a row.
        kv_length: Keys of a row; more than queries where a cache holds some.
        q_offset: Index of the first query.
        kv_offset: Index of the first key.
        mask_function: transformers' description of the pattern.
        attention_mask: Which tokens are not padding, shape (B, keys so far); or what this function made before.
        **options: Other arguments of transformers' mask functions.

    Returns:
        The pattern; with a cache a mask, True where a query sees a key, shape (B, 1, queries, keys).

    Raises:
        ModelError: The pattern is none that we attend.
    """
    if isinstance(attention_mask, Seen):
        return attention_mask
    whole = isinstance(q_offset, int) and q_offset == kv_offset == 0 and q_length == kv_length
    if whole and (attention_mask is None or attention_mask.shape[-1] == q_length):
        found = list(_parts(mask_function))
        windows = [size for kind, size in found if kind == "window"]
        return Seen(("causal", 0) in found, min(windows, default=None), attention_mask)
    options.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    start: Any = q_offset  # mypy reads a number in transformers, but static caches count on the device
    dense = masking_utils.sdpa_mask(
        batch_size, q_length, kv_length, start, kv_offset, mask_function, attention_mask, **options
    )
    assert dense is not None, "nothing may be left out"
    return dense


def _parts(function: Callable[..., Any]) -> Iterator[tuple[str, int]]:
    """Read a pattern of transformers: it is a function, composed of others."""
    if function is masking_utils.causal_mask_function:
        yield "causal", 0
        return
    if function is masking_utils.bidirectional_mask_function:
        return
    code = getattr(function, "__code__", None)
    cells = getattr(function, "__closure__", None) or ()
    bound = dict(zip(code.co_freevars, (cell.cell_contents for cell in cells), strict=True)) if code else {}
    maker = function.__qualname__.split(".")[0] if function.__module__ == masking_utils.__name__ else None
    if maker == "and_masks":
        for part in bound["mask_functions"]:
            yield from _parts(part)
    elif maker == "sliding_window_overlay":
        yield "window", bound["sliding_window"]
    elif maker == "sliding_window_bidirectional_overlay":
        yield "window", bound["sliding_window"] + 1
    elif maker == "remap_positions_for_packed_sequence":
        yield from _parts(bound["mask_function"])
    elif maker != "packed_sequence_mask_function":  # that one says what the position ids say
        raise ModelError(
            f"the model applies its own attention pattern ({function.__qualname__}), which {NAME} does not "
            f"support: {KEEP}"
        )


@torch.compiler.disable
def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Seen | torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_ids: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within documents: transformers' attention function.

    Args:
        module: The attention module.
        query: Shape (B, H, queries, D).
        key: Shape (B, Hk, keys, D).
        value: Shape (B, Hk, keys, Dv).
        attention_mask: What `mask` returned; None if the model has no masks.
        dropout: Share of the weights that is dropped.
        scaling: Factor on query times key.
        sliding_window: Keys a query sees, itself included; only where the mask does not say.
        softcap: Scores become softcap * tanh(score / softcap).
        is_causal: Whether a query sees no later key; only where the mask does not say.
        position_ids: Position of every token in its document, shape (B or 1, L).
        cu_seq_lens_q: Boundaries of the documents of all rows end to end, shape (documents + 1,): then `position_ids`
            are not asked, and nothing is read back from a GPU.
        max_length_q: Tokens of the longest document, or an upper bound.
        **options: Other arguments of the model.

    Returns:
        Shape (B, queries, H, Dv), and None in place of the weights.

    Raises:
        ModelError: The model asks for something that is not served, or does not say where documents begin.
        ShapeError: Packed rows meet a cache.
    """
    for name, meaning in _UNSERVED.items():
        if (asked := options.get(name)) is not None and asked is not False:
            raise ModelError(f"{type(module).__name__} needs {meaning}, which {NAME} does not support: {KEEP}")
    if isinstance(attention_mask, torch.Tensor):
        _refuse_leak(attention_mask, position_ids)
        out = attend_masked(query, key, value, attention_mask, Pattern(False, None, scaling, softcap, dropout))
        return out.transpose(1, 2).contiguous(), None
    if attention_mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        attention_mask = Seen(causal, sliding_window, None)
    rows, _, length, _ = query.shape
    if key.shape[2] != length:
        raise ShapeError(f"{length} queries and {key.shape[2]} keys, but no attention mask: {KEEP}")
    pattern = Pattern(attention_mask.causal, attention_mask.window, scaling, softcap, dropout)
    documents = _documents(attention_mask, rows, length, position_ids, cu_seq_lens_q, max_length_q)
    flat = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    return attend(*flat, documents, pattern).unflatten(0, (rows, length)), None


def _documents(
    seen: Seen,
    rows: int,
    length: int,
    position_ids: torch.Tensor | None,
    bounds: torch.Tensor | None,
    longest: int | None,
) -> Documents:
    if bounds is not None:
        return seen.documents(bounds, lambda: Documents(bounds, rows * length, longest))
    if position_ids is None:
        raise ModelError(f"the model does not pass its position ids to its attention, which {NAME} needs: {KEEP}")
    return seen.documents(
        position_ids, lambda: documents_of(position_ids.expand(rows, -1) if rows > 1 else position_ids, seen.real)
    )


_CHECKED = WeakIdKeyDictionary()
"""Masks that have been checked."""


def _refuse_leak(dense: torch.Tensor, position_ids: torch.Tensor | None) -> None:
    """A cache does not know documents: the last query of a row may see no more keys than its position allows."""
    if dense.dim() != 4 or dense.dtype != torch.bool:
        raise ShapeError(
            f"a mask of shape {tuple(dense.shape)} in {dense.dtype} was passed to the model: pass the padding, of "
            "shape (rows, tokens), and position ids that restart with each document"
        )
    if position_ids is None or position_ids.dim() != 2 or dense in _CHECKED:
        return
    visible = dense[:, 0, -1].sum(-1)
    if bool((visible > position_ids[:, -1].to(visible.device) + 1).any()):
        raise ShapeError(
            "the last token of a row attends to more cached tokens than precede its position: packed rows cannot be "
            "continued from a cache; give each document a row of its own, padded on the left"
        )
    _CHECKED[dense] = True
