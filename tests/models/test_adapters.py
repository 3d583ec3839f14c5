"""Adapters stand on the layers that were asked for, and train nothing else."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from aitrain.config.adapter import Adapter, Dora, Lora, NoAdapter, Qlora
from aitrain.config.model import Model
from aitrain.errors import ModelError
from aitrain.models.adapters import apply_adapter, linear_endings, trainable_summary
from aitrain.models.load import build_model, locate

LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture
def model() -> PreTrainedModel:
    return build_model(locate(Model(path="asset:tiny-llama")))


def wrapped_endings(model: torch.nn.Module) -> list[str]:
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    return sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names})


def test_without_an_adapter_every_weight_is_trained(model: PreTrainedModel) -> None:
    same = apply_adapter(model, NoAdapter())
    summary = trainable_summary(same)
    assert same is model
    assert summary.trainable == summary.total == 1049728 and summary.share == 1


@pytest.mark.parametrize("adapter", [Lora(rank=4), Dora(rank=4)])
def test_null_means_all_linear_layers_but_the_head(model: PreTrainedModel, adapter: Adapter) -> None:
    ids = torch.arange(20)[None]
    before = model(ids).logits
    wrapped = apply_adapter(model, adapter)
    assert isinstance(wrapped, PeftModel)
    assert wrapped_endings(wrapped) == LINEAR
    torch.testing.assert_close(wrapped(ids).logits, before, rtol=0, atol=1e-5)
    shapes = {"q": (128, 128), "k": (64, 128), "v": (64, 128), "o": (128, 128)}
    shapes |= {"gate": (384, 128), "up": (384, 128), "down": (128, 384)}
    matrices = sum(4 * (rows + columns) for rows, columns in shapes.values())
    magnitudes = sum(rows for rows, _ in shapes.values()) if isinstance(adapter, Dora) else 0
    assert trainable_summary(wrapped).trainable == 4 * (matrices + magnitudes)


def test_named_targets_and_their_scale(model: PreTrainedModel) -> None:
    wrapped = apply_adapter(model, Lora(rank=2, alpha=3.0, target_modules=["q_proj", "v_proj"]))
    assert wrapped_endings(wrapped) == ["q_proj", "v_proj"]
    layer = wrapped.base_model.model.model.layers[0].self_attn.q_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(1, 128)
    update = x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    torch.testing.assert_close(layer(x), x @ layer.base_layer.weight.T + 3.0 / 2 * update)


def test_a_target_that_matches_nothing_names_what_there_is(model: PreTrainedModel) -> None:
    with pytest.raises(ModelError, match=r"c_attn matches no layer of LlamaForCausalLM.*q_proj, up_proj, v_proj"):
        apply_adapter(model, Lora(target_modules=["q_proj", "c_attn"]))
    assert linear_endings(model) == sorted([*LINEAR, "lm_head"])


def test_qlora_on_a_model_that_is_not_quantised_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ModelError, match="write adapter=lora"):
        apply_adapter(model, Qlora())


@pytest.mark.parametrize("autocast", [False, True])
def test_dtype_of_the_adapter_beside_bfloat16_weights(autocast: bool) -> None:
    low = build_model(locate(Model(path="asset:tiny-llama")), dtype=torch.bfloat16)
    wrapped = apply_adapter(low, Lora(rank=2), autocast_adapter_dtype=autocast)
    (dtype,) = {weight.dtype for weight in wrapped.parameters() if weight.requires_grad}
    assert dtype is (torch.float32 if autocast else torch.bfloat16)
