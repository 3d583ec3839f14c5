"""Writes the shipped tiny model as a GGUF file with the gguf package, as llama.cpp's converter does."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from transformers import AutoModelForCausalLM

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _rope_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows from Hugging Face's rotary halves to GGUF's pairs."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(folder: Path, file: Path, leave_out: str | None = None, eos: int | None = None) -> None:
    """Write a Llama folder as a GGUF file in float32, with faults on demand."""
    model = AutoModelForCausalLM.from_pretrained(folder).float()
    config, words = model.config, json.loads((folder / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    special = {token["id"] for token in words["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(tokens))]
    )
    writer.add_token_merges([" ".join(merge) for merge in words["model"]["merges"]])
    writer.add_eos_token_id(config.eos_token_id if eos is None else eos)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
    for name, weight in model.named_parameters():
        if name == leave_out:
            continue
        values = weight.detach().numpy()
        if "q_proj" in name:
            values = _rope_order(values, config.num_attention_heads)
        if "k_proj" in name:
            values = _rope_order(values, config.num_key_value_heads)
        writer.add_tensor(_gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, inside = name.split(".", 3)
    return f"blk.{layer}.{LAYER[inside.removesuffix('.weight')]}.weight"
