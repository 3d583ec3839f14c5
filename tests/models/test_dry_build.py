"""What a model would refuse when it is loaded is found without its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from aitrain.config.adapter import Dora, Lora, NoAdapter, Qlora
from aitrain.config.model import Attention, Model, ModelInit
from aitrain.errors import ModelError
from aitrain.models.dry_build import dry_build
from aitrain.models.load import build_model, load_tokenizer, locate

SIZES: dict[str, dict[str, int]] = {
    "gemma2": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
               "intermediate_size": 32, "head_dim": 16},
    "bloom": {"hidden_size": 32, "n_layer": 1, "n_head": 2},
    "mpt": {"d_model": 32, "n_layers": 1, "n_heads": 2},
    "gptj": {"n_embd": 32, "n_layer": 1, "n_head": 2, "rotary_dim": 8},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 1},
}  # fmt: skip


@pytest.mark.parametrize("kind", SIZES)
def test_an_attention_that_a_model_lacks(kind: str, folder: Path, tmp_path: Path) -> None:
    config = AutoConfig.for_model(kind, vocab_size=1024, bos_token_id=0, eos_token_id=0, **SIZES[kind])
    place = Path(
        shutil.copytree(folder, tmp_path / kind, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    )
    AutoModelForCausalLM.from_config(config, attn_implementation="eager").save_pretrained(place)
    for build in (lambda m: dry_build(locate(m), NoAdapter()), lambda m: build_model(locate(m))):
        with pytest.raises(ModelError) as caught:
            build(Model(path=str(place)))
        assert str(caught.value).startswith("model.attention=sdpa is not supported by ")
        assert str(caught.value).endswith("write model.attention=eager, which every model has")
        build(Model(path=str(place), attention=Attention.eager))


def test_nothing_is_loaded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    dry_build(locate(Model(path=str(folder), init=ModelInit.random)), NoAdapter())


@pytest.mark.parametrize("adapter", [Lora(rank=2), Dora(rank=2), Qlora(rank=2), Lora(modules_to_save=["lm_head"])])
def test_adapters_are_put_on(folder: Path, adapter: Lora) -> None:
    dry_build(locate(Model(path=str(folder))), adapter)


@pytest.mark.parametrize(
    ("adapter", "key"),
    [(Lora(target_modules=["q_prj"]), "target_modules"), (Lora(modules_to_save=["head"]), "modules_to_save")],
)
def test_a_layer_that_is_not_there(folder: Path, adapter: Lora, key: str) -> None:
    with pytest.raises(ModelError, match=rf"adapter\.{key}: .* matches no layer of LlamaForCausalLM"):
        dry_build(locate(Model(path=str(folder))), adapter)


def test_a_tokenizer_longer_than_the_embedding(folder: Path) -> None:
    tokenizer = load_tokenizer(locate(Model(path=str(folder))))
    content = json.loads((folder / "config.json").read_text())
    content["vocab_size"] = len(tokenizer) - 1
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=rf"its tokenizer has {len(tokenizer)} tokens, but the embedding only"):
        load_tokenizer(locate(Model(path=str(folder))))


def test_torch_is_as_before(folder: Path) -> None:
    dry_build(locate(Model(path=str(folder))), Lora(rank=2))
    assert torch.empty(1).device.type == "cpu"
