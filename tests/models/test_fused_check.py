"""Models without a causal head: what they compute fused is what they compute as they came, or it is turned off."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    EsmConfig,
    EsmModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from aitrain.errors import ModelError
from aitrain.models import fused_rope
from aitrain.models.fuse import fuse, has_fused_loss
from aitrain.models.fused_check import FusedCheck, check_outputs
from aitrain.ops.layer_norm.op import layer_norm

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
IDS = torch.tensor([[5, 9, 3, 7, 11, 2]])
ESM = EsmConfig(vocab_size=33, position_embedding_type="rotary", pad_token_id=1, mask_token_id=32, **SIZES)
WHISPER = WhisperConfig(
    vocab_size=60,
    d_model=32,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_source_positions=10,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
)
MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any], set[str]]] = {
    "vit": (
        lambda: ViTModel(ViTConfig(image_size=16, patch_size=8, **SIZES)),
        {"pixel_values": torch.linspace(-1, 1, 768).view(1, 3, 16, 16)},
        {"LayerNorm -> layer_norm"},
    ),
    "bert": (
        lambda: BertModel(BertConfig(vocab_size=60, **SIZES)),
        {"input_ids": IDS},
        {"LayerNorm -> layer_norm"},
    ),
    "esm": (
        lambda: EsmModel(ESM),
        {"input_ids": IDS},
        {"LayerNorm -> layer_norm", "EsmSelfAttention -> rope_qk"},
    ),
    "whisper": (
        lambda: WhisperForConditionalGeneration(WHISPER),
        {"input_features": torch.linspace(-1, 1, 1600).view(1, 80, 20), "decoder_input_ids": IDS, "use_cache": False},
        {"LayerNorm -> layer_norm"},
    ),
}


def build(kind: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[kind][0]()
    for weight in model.parameters():
        weight.data.normal_(0, 0.2)
    return model.eval()


def passes(model: nn.Module, batch: dict[str, Any]) -> list[torch.Tensor]:
    """Return the first output and all gradients of its weighted sum."""
    out = model(**batch)[0]
    model.zero_grad()
    (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum().backward()
    return [out.detach()] + [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("kind", MODELS)
def test_outputs_and_gradients_stay(kind: str) -> None:
    model, batch = build(kind), MODELS[kind][1]
    expected = passes(model, batch)
    report = fuse(model)
    assert set(report.replaced) == MODELS[kind][2]
    assert "is not a causal language model" in report.left["loss of the head"] and not has_fused_loss(model)
    for found, right in zip(passes(model, batch), expected, strict=True):
        # fp32 sums of 32 to 100 numbers in another order, through two layers
        assert float((found - right).abs().max()) <= 2e-5 * float(right.abs().max()) + 1e-9
    check = check_outputs(model, **batch)
    assert check.agrees and check.difference < 1e-5


def test_another_result_is_seen_and_turned_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("aitrain.models.fuse.layer_norm", lambda x, w, b, eps: layer_norm(x, w, b, 0.3))
    model, batch = build("bert"), MODELS["bert"][1]
    expected = model(**batch)[0]
    fuse(model)
    assert not torch.equal(model(**batch)[0], expected)
    with caplog.at_level(logging.WARNING):
        assert not check_outputs(model, **batch).agrees
    assert "differs by" in caplog.text and "model.fused_ops=off" in caplog.text
    assert torch.equal(model(**batch)[0], expected)


def test_nan_is_no_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aitrain.models.fuse.layer_norm", lambda x, w, b, eps: x * float("nan"))
    model = build("vit")
    fuse(model)
    assert not check_outputs(model, **MODELS["vit"][1]).agrees


def test_a_kernel_that_fails_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(fused_rope, "rope_qk", lambda q, k, *_, **__: (q, k))
    monkeypatch.setattr("aitrain.models.fuse.layer_norm", broken)
    model = build("vit")
    fuse(model)
    with pytest.raises(ModelError, match=r"no kernel image is available; write model\.fused_ops=off"):
        check_outputs(model, **MODELS["vit"][1])


def test_a_model_that_is_not_fused_is_told() -> None:
    with pytest.raises(ModelError, match="BertModel is not fused"):
        check_outputs(build("bert"), input_ids=IDS)


def test_random_numbers_stay() -> None:
    model = build("bert").train()
    fuse(model)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert check_outputs(model, input_ids=IDS).agrees  # dropout draws the same in both passes
    assert torch.equal(torch.random.get_rng_state(), before)


def bf16_check(seed: int, wrong: float = 1.0) -> FusedCheck:
    """Let a random Llama check itself with weights in fp32 and products in bf16, as every bf16 run computes."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **SIZES)).eval()
    for weight in model.parameters():
        weight.data.normal_(0, 0.3)
    fuse(model)
    norm = model.model.norm
    original = norm.forward
    if wrong != 1.0:
        norm.forward = lambda x: original(x) * (wrong if model.fused_switch.on else 1.0)
    ids = torch.zeros(1, 2, dtype=torch.int64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids, use_cache=False, fused_targets=ids)
    return model.fused_loss.check


def test_no_llama_loses_its_fused_ops_to_the_rounding_of_bf16() -> None:
    checks = [bf16_check(seed) for seed in range(16)]
    assert all(check.agrees and check.allowed == 5e-2 for check in checks)


def test_a_wrong_scale_is_seen_in_bf16_too() -> None:
    assert not any(bf16_check(seed, wrong=3.0).agrees for seed in range(4))
