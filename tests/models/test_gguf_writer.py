"""A model written as GGUF is read back by transformers: the same logits within the format's rounding."""

from __future__ import annotations

import ctypes
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from aitrain.errors import ModelError
from aitrain.models.assets import resolve
from aitrain.models.gguf_writer import GgufType, _llama3_factors, write_gguf

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 128, "eos_token_id": 2}
KINDS: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama with its own head": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "mistral": MistralConfig(**SIZES, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=128, tie_word_embeddings=True),
}
WORDS = torch.tensor([[5, 17, 300, 2000, 44, 9, 1023]])


def folder_of(config: Any, to: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.save_pretrained(to)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(resolve("asset:tiny-llama") / file, to / file)
    return to


DAILY = [("llama", GgufType.f16), ("llama with its own head", GgufType.q8_0), ("qwen3", GgufType.f16)]
EVERY = [(which, kind) for which in KINDS for kind in GgufType]


@pytest.mark.parametrize(
    ("which", "kind"), [pytest.param(*each, marks=() if each in DAILY else pytest.mark.slow) for each in EVERY]
)
def test_transformers_reads_the_same_logits(tmp_path: Path, which: str, kind: GgufType) -> None:
    folder = folder_of(KINDS[which], tmp_path / "model")
    write_gguf(folder, tmp_path / "m.gguf", kind, "tiny")
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    here = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    there: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    with torch.no_grad():
        wanted, found = here(WORDS).logits, there(WORDS).logits
    error = float((found - wanted).norm() / wanted.norm())
    assert error < {"f32": 1e-5, "f16": 2e-3, "bf16": 2e-2, "q8_0": 3e-2}[kind.name], error


WITHOUT_LLAMA_CPP = "llama-cpp-python is not installed: it has no wheel, and pip builds it from source in some minutes"


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(GgufType))
def test_llama_cpp_reads_the_same_logits_and_the_chat_template(tmp_path: Path, kind: GgufType) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason=WITHOUT_LLAMA_CPP)
    folder = resolve("asset:tiny-llama")
    write_gguf(folder, tmp_path / "m.gguf", kind, "tiny", "apache-2.0")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    question = [{"role": "user", "content": "Continue: In the beginning"}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0]
        answer = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
    there = llama_cpp.Llama(str(tmp_path / "m.gguf"), logits_all=True, n_ctx=256, verbose=False)
    assert there.tokenize(text.encode(), add_bos=False, special=True) == ids
    there.reset()
    there.eval(ids)
    found = torch.tensor(there.scores[: len(ids)])
    error = float((found - wanted).norm() / wanted.norm())
    # llama.cpp itself multiplies in 16 bits, and keeps keys and values in them
    assert error < {"f32": 1e-3, "f16": 2e-3, "bf16": 2e-2, "q8_0": 3e-2}[kind.name], error
    if kind in (GgufType.f32, GgufType.f16):
        said = there.create_chat_completion(question, max_tokens=8, temperature=0.0)
        assert said["choices"][0]["message"]["content"] == tokenizer.decode(answer, skip_special_tokens=True)


@pytest.mark.slow
def test_8_bit_weights_are_those_of_llama_cpp(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason=WITHOUT_LLAMA_CPP)
    for kind in (GgufType.f32, GgufType.q8_0):
        write_gguf(resolve("asset:tiny-llama"), tmp_path / f"{kind.name}.gguf", kind, "tiny", "apache-2.0")
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    paths = (str(tmp_path / name).encode() for name in ("f32.gguf", "theirs.gguf"))
    assert llama_cpp.llama_model_quantize(*paths, ctypes.byref(settings)) == 0
    ours, theirs = (
        {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors}
        for name in ("q8_0", "theirs")
    )
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_the_tokenizer_and_its_ends_are_kept(tmp_path: Path) -> None:
    folder = folder_of(KINDS["llama"], tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    write_gguf(folder, tmp_path / "m.gguf", GgufType.f16, "tiny", "apache-2.0")
    ours, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    text = "<|im_start|>user\nHoe zegt u één contract op?<|im_end|>\n"
    assert theirs(text).input_ids == ours(text).input_ids and theirs.eos_token_id == 2
    assert theirs.chat_template == ours.chat_template
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["general.license"].contents() == "apache-2.0"
    assert fields["tokenizer.ggml.eot_token_id"].contents() == 2


def test_rotary_factors_of_llama_3_are_those_of_transformers() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    sizes = SIZES | {"hidden_size": 512, "max_position_embeddings": 131072}
    config = LlamaConfig(**sizes, rope_parameters=rope)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(plain / _llama3_factors(config), theirs.numpy(), rtol=1e-5)


def test_what_has_no_counterpart_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    other = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64)).save_pretrained(other)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(resolve("asset:tiny-llama") / file, other / file)
    with pytest.raises(ModelError, match="GPT2LMHeadModel cannot be written as GGUF here .*convert_hf_to_gguf.py"):
        write_gguf(other, tmp_path / "m.gguf", GgufType.f16, "x")
    folder = folder_of(KINDS["llama"], tmp_path / "model")
    words = json.loads((folder / "tokenizer.json").read_text())
    words["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ModelError, match="splits text in a way that has no name in GGUF"):
        write_gguf(folder, tmp_path / "m.gguf", GgufType.f16, "x")
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    scaled = folder_of(LlamaConfig(**SIZES, rope_parameters=rope), tmp_path / "s")
    with pytest.raises(ModelError, match="rope_type=linear cannot be written"):
        write_gguf(scaled, tmp_path / "m.gguf", GgufType.f16, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt2", "model", "s"]


def test_a_file_that_lost_a_weight_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, quantise = folder_of(KINDS["llama"], tmp_path / "model"), gguf.quants.quantize
    monkeypatch.setattr(gguf.quants, "quantize", lambda values, kind: quantise(values * 1.01, kind))
    with pytest.raises(ModelError, match="m.gguf.partial does not hold the weights of"):
        write_gguf(folder, tmp_path / "m.gguf", GgufType.f16, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
