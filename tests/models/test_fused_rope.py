"""The rotation of an attention module is replaced for this module alone, and only where ours computes the same."""

from __future__ import annotations

import pytest
import torch
from models.test_fuse import build, tokens
from torch import nn
from transformers.models.cohere.modeling_cohere import CohereAttention
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention
from transformers.models.llama import modeling_llama

from aitrain.models import fused_rope
from aitrain.models.fuse import fuse
from aitrain.models.fused_rope import rotated_forward


def attention(kind: str) -> nn.Module:
    return next(m for m in build(kind).modules() if type(m).__name__.endswith("Attention"))


def test_only_this_model_rotates_our_way(monkeypatch: pytest.MonkeyPatch) -> None:
    rotated = []
    ours = fused_rope.rope_qk
    monkeypatch.setattr(fused_rope, "rope_qk", lambda q, *rest, **how: rotated.append(q.shape) or ours(q, *rest, **how))
    other, model, theirs = build("llama"), build("llama"), modeling_llama.apply_rotary_pos_emb
    fuse(model)
    rotated.clear()
    ids, _ = tokens()
    right = other(ids).logits
    assert not rotated and modeling_llama.apply_rotary_pos_emb is theirs
    torch.testing.assert_close(model(ids).logits, right, rtol=1e-5, atol=1e-4)
    assert rotated == [(2, 4, 12, 16)] * 2


def test_partial_rotation_is_ours_too() -> None:
    module = attention("gpt_neox")
    assert isinstance(module, GPTNeoXAttention) and callable(rotated_forward(module))


def test_pairs_of_neighbours_are_left_with_the_reason() -> None:
    module = attention("cohere")
    assert isinstance(module, CohereAttention)
    assert rotated_forward(module) == "its apply_rotary_pos_emb computes something other than rope_qk"


def test_a_module_that_rotates_nothing() -> None:
    assert rotated_forward(nn.Linear(2, 2)) is None


def test_a_wrong_angle_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(q, k, cos, sin, unsqueeze_dim=1):  # type: ignore[no-untyped-def]
        return fused_rope._rotate(q, k, cos, -sin, unsqueeze_dim)

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", turned)
    assert isinstance(rotated_forward(attention("llama")), str)
