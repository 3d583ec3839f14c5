"""Loading gives exactly the weights on disk, or one line; never random numbers in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from aitrain.config.model import Attention, Model, ModelInit
from aitrain.errors import ModelError
from aitrain.models.folder import code_sha256
from aitrain.models.load import build_model, load_tokenizer, locate


def edit(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_weights_equal_those_of_plain_transformers(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    built = build_model(locate(Model(path=str(folder))))
    said = capfd.readouterr()
    assert said.out + said.err == ""
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for (name, weight), (_, expected) in zip(built.named_parameters(), reference.named_parameters(), strict=True):
        assert weight.dtype is torch.float32
        assert torch.equal(weight, expected), name
    assert built.config.use_cache is False
    assert built.config._attn_implementation == "sdpa"
    assert built.lm_head.weight is built.model.embed_tokens.weight


def test_attention_and_dtype_follow_the_recipe(folder: Path) -> None:
    built = build_model(locate(Model(path=str(folder), attention=Attention.eager)), dtype=torch.bfloat16)
    assert built.config._attn_implementation == "eager"
    assert built.dtype is torch.bfloat16


def test_missing_weights_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"weights are missing from .* [(]first: model.layers.1.mlp.up_proj.weight"):
        build_model(locate(Model(path=str(folder))))


def test_weights_that_are_not_used_are_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"other.weight": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    build_model(locate(Model(path=str(folder))))
    assert "1 weights that are not used, first other.weight" in caplog.text


def test_weights_of_another_shape_are_one_line(folder: Path) -> None:
    edit(folder / "config.json", hidden_size=64, head_dim=16)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        build_model(locate(Model(path=str(folder))))
    assert "\n" not in str(caught.value)


def test_faults_of_the_folder_are_told_before_loading(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        locate(Model(path=str(folder)))


def test_random_start_follows_the_seed_and_the_init_of_the_model(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    random = Model(path=str(folder), init=ModelInit.random)
    built = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        built.append(build_model(locate(random)).model.layers[0].mlp.up_proj.weight)
    assert torch.equal(built[0], built[1]) and not torch.equal(built[0], built[2])
    assert built[0].std().item() == pytest.approx(0.02, rel=0.02)


def test_own_code_runs_when_it_is_vetted(folder: Path) -> None:
    code = "from transformers import LlamaConfig, LlamaForCausalLM\n"
    code += "class OwnConfig(LlamaConfig):\n    model_type = 'made_up'\n"
    code += "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n    own = True\n"
    (folder / "own.py").write_text(code)
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit(folder / "config.json", model_type="made_up", auto_map=names)
    with pytest.raises(ModelError, match="does not run before you have reviewed it"):
        build_model(locate(Model(path=str(folder))))
    assert build_model(locate(Model(path=str(folder), vetted_code_sha256=code_sha256(folder)))).own


def test_a_chat_template_of_the_recipe_replaces_the_models_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short.jinja").write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    tokenizer = load_tokenizer(locate(Model(path=str(folder), chat_template=str(tmp_path / "short.jinja"))))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "[a]"


def test_padding_falls_to_end_of_text_and_without_both_there_is_an_answer(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None)
    assert load_tokenizer(locate(Model(path=str(folder)))).pad_token == "<|im_end|>"
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match="neither a padding nor an end-of-text token"):
        load_tokenizer(locate(Model(path=str(folder))))


def test_a_broken_tokenizer_is_one_line(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded") as caught:
        load_tokenizer(locate(Model(path=str(folder))))
    assert "\n" not in str(caught.value)


def test_four_bit_weights_on_a_cpu_are_refused(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ModelError, match="write adapter=lora"):
        build_model(locate(Model(path=str(folder))), adapter_is_quantised=True)
