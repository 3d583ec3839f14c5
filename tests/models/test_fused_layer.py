"""The sum in the middle of a layer goes through the norm, with any types and any way of passing arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models.test_fuse import build, tokens

from aitrain.models import fuse as subject
from aitrain.models.fuse import fuse
from aitrain.models.fused_layer import summed_forward


@pytest.mark.parametrize(("kind", "norms"), [("llama", 5), ("qwen3", 9), ("gemma3_text", 13)])
def test_every_layer_hands_its_sum_to_one_norm(kind: str, norms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with_sum = []
    ours = subject.rms_norm

    def seen(x: torch.Tensor, weight: Any, eps: float, residual: torch.Tensor | None, *how: Any) -> Any:
        with_sum.append(residual is not None)
        return ours(x, weight, eps, residual, *how)

    monkeypatch.setattr(subject, "rms_norm", seen)
    model = build(kind)
    fuse(model)
    model(tokens()[0])
    assert with_sum.count(True) == 2 and len(with_sum) == norms


def test_autocast_keeps_the_stream_in_float32() -> None:
    model, (ids, _) = build("llama"), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(ids).logits
        fuse(model)
        found = model(ids).logits
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.05, atol=0.3)


def test_arguments_by_place() -> None:
    model = build("llama")
    layer, hidden = model.model.layers[0], torch.randn(1, 3, 64)
    angles = model.model.rotary_emb(hidden, torch.arange(3)[None])
    expected = layer(hidden, None, None, None, False, angles)
    named = layer(hidden, position_embeddings=angles)
    torch.testing.assert_close(named, expected)
    fuse(model)
    torch.testing.assert_close(layer(hidden, None, None, None, False, angles), expected, rtol=1e-5, atol=1e-5)


def test_other_layers_stay() -> None:
    assert summed_forward(build("olmo2").model.layers[0]) is None
    assert summed_forward(build("phi3").model.layers[0]) is None  # dropout between attention and sum
