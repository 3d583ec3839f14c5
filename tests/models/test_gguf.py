"""A converted GGUF model is the model that was written into it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from aitrain.config.model import Model
from aitrain.errors import ModelError
from aitrain.models.gguf import convert, storage_dtype
from aitrain.models.gguf_header import GgufHeader
from aitrain.models.load import build_model, load_tokenizer, locate
from aitrain.models.safetensors_header import read_tensors


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITRAIN_CACHE", str(tmp_path / "cache"))


def test_converted_model_and_tokenizer_equal_the_original(folder: Path, tmp_path: Path) -> None:
    write_gguf(folder, tmp_path / "tiny.gguf")
    convert(tmp_path / "tiny.gguf", tmp_path / "out")
    words, original_words = AutoTokenizer.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "Een vraag, 1637?"}]
    text = words.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == original_words.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert words(text)["input_ids"] == original_words(text)["input_ids"]
    assert (words.eos_token, words.pad_token) == ("<|im_end|>", "<|endoftext|>")
    ids = torch.tensor([words(text)["input_ids"]])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(model(ids).logits, original(ids).logits, rtol=0, atol=1e-5)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in read_tensors(tmp_path / "out/model.safetensors")


def test_a_recipe_may_name_a_gguf_file_and_it_is_converted_once(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(folder, file)
    first = build_model(locate(Model(path=str(file))))
    (cached,) = (tmp_path / "cache/gguf").iterdir()
    written = (cached / "model.safetensors").stat().st_mtime_ns
    assert load_tokenizer(locate(Model(path=str(file)))).eos_token == "<|im_end|>"
    assert (cached / "model.safetensors").stat().st_mtime_ns == written
    assert first.num_parameters() == 1049728


def test_a_file_that_lacks_a_weight_is_refused(folder: Path, tmp_path: Path) -> None:
    write_gguf(folder, tmp_path / "tiny.gguf", leave_out="model.layers.2.mlp.up_proj.weight")
    with pytest.raises(ModelError, match=r"1 of the model's weights are missing from .*gguf: download it again"):
        convert(tmp_path / "tiny.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_end_of_text_that_the_tokenizer_does_not_share_is_refused(folder: Path, tmp_path: Path) -> None:
    write_gguf(folder, tmp_path / "tiny.gguf", eos=5000)
    with pytest.raises(ModelError):
        convert(tmp_path / "tiny.gguf", tmp_path / "out")


def test_full_precision_stays_and_few_bits_become_bfloat16() -> None:
    shapes = {"a": (100, 100), "norm": (100,)}
    assert storage_dtype(GgufHeader(shapes=shapes, types={"a": 3, "norm": 0})) is torch.bfloat16
    assert storage_dtype(GgufHeader(shapes=shapes, types={"a": 1, "norm": 0})) is torch.float32
    assert storage_dtype(GgufHeader(shapes=shapes, types={"a": 30, "norm": 0})) is torch.bfloat16
