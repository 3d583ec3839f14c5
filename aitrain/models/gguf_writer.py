"""Writes a Hugging Face folder as a GGUF file for llama.cpp and Ollama, and reads it back to compare every weight."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from aitrain.errors import ModelError
from aitrain.models.quiet import quiet

Array = npt.NDArray[Any]


class GgufType(Enum):
    """Number format of the matrices in a GGUF file; norms and biases are fp32 in all."""

    f32 = gguf.GGMLQuantizationType.F32
    f16 = gguf.GGMLQuantizationType.F16
    bf16 = gguf.GGMLQuantizationType.BF16
    q8_0 = gguf.GGMLQuantizationType.Q8_0


_FILE_TYPES = {
    GgufType.f32: gguf.LlamaFileType.ALL_F32,
    GgufType.f16: gguf.LlamaFileType.MOSTLY_F16,
    GgufType.bf16: gguf.LlamaFileType.MOSTLY_BF16,
    GgufType.q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
}
_ROUNDING = {GgufType.f32: 0.0, GgufType.f16: 2.0**-11, GgufType.bf16: 2.0**-8, GgufType.q8_0: 0.0}
"""Largest relative error of one weight; of Q8_0, half a 127th of the largest of its 32 (see `_difference`)."""

_BLOCK = 32
"""Weights that share a scale in Q8_0."""


@dataclass(frozen=True)
class _Kind:
    """How an architecture of transformers is written as GGUF."""

    arch: Any
    """Its name in the gguf package."""

    turns_rope: bool = False
    """Whether rows of the query and key matrices are put in llama.cpp's order of rotary pairs."""


_KINDS = {
    "LlamaForCausalLM": _Kind(gguf.MODEL_ARCH.LLAMA, turns_rope=True),
    "MistralForCausalLM": _Kind(gguf.MODEL_ARCH.LLAMA, turns_rope=True),
    "Qwen2ForCausalLM": _Kind(gguf.MODEL_ARCH.QWEN2),
    "Qwen3ForCausalLM": _Kind(gguf.MODEL_ARCH.QWEN3),
}


def write_gguf(folder: Path, to: Path, kind: GgufType, name: str, licence: str | None = None) -> None:
    """Write a model folder as one GGUF file, and compare it with the folder.

    Args:
        folder: A Hugging Face folder with safetensors.
        to: The file; must not exist.
        kind: Number format of the matrices.
        name: Name of the model.
        licence: Its licence, where known.

    Raises:
        ModelError: The architecture or the tokenizer has no counterpart here, or the file does not hold the weights.
    """
    with quiet():
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    architecture = (config.architectures or ["?"])[0]
    if architecture not in _KINDS:
        raise ModelError(
            f"{architecture} cannot be written as GGUF here ({', '.join(_KINDS)} can): export a folder and convert it "
            "with llama.cpp's convert_hf_to_gguf.py"
        )
    how = _KINDS[architecture]
    partial = to.with_name(f"{to.name}.partial")
    writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[how.arch])
    try:
        writer.add_name(name)
        if licence is not None:
            writer.add_license(licence)
        _write_shape(writer, config, kind)
        _write_tokens(writer, folder, tokenizer, config)
        names = gguf.get_tensor_name_map(how.arch, config.num_hidden_layers)
        for name_here, name_there, weight in _weights(folder, names):
            values = _turned(name_here, weight, config) if how.turns_rope else weight
            found = _type_of(values, kind)
            writer.add_tensor(name_there, gguf.quants.quantize(values, found.value), raw_dtype=found.value)
        if _rope(config).get("rope_type", "default") == "llama3":
            writer.add_tensor("rope_freqs.weight", _llama3_factors(config))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _compare(partial, folder, names, how, config)
        partial.rename(to)
    except BaseException:
        writer.close()
        partial.unlink(missing_ok=True)
        raise


def _rope(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    return found


def _write_shape(writer: gguf.GGUFWriter, config: Any, kind: GgufType) -> None:
    rope = _rope(config)
    if rope.get("rope_type", "default") not in ("default", "llama3"):
        raise ModelError(
            f"rope_type={rope['rope_type']} cannot be written as GGUF here: export a folder and convert it with "
            "llama.cpp's convert_hf_to_gguf.py"
        )
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(_FILE_TYPES[kind])


def _llama3_factors(config: Any) -> Array:
    """Return the divisor of each rotary frequency.

    Source: `_compute_llama3_parameters` of transformers' `modeling_rope_utils.py`.
    """
    rope = _rope(config)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    lengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, width, 2, dtype=np.float64) / width)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = (rope["original_max_position_embeddings"] / lengths - low) / (high - low)
    inside = 1 / ((1 - smooth) / rope["factor"] + smooth)
    whole = rope["original_max_position_embeddings"]
    found = np.where(lengths < whole / high, 1.0, np.where(lengths > whole / low, rope["factor"], inside))
    return found.astype(np.float32)


def _write_tokens(writer: gguf.GGUFWriter, folder: Path, tokenizer: Any, config: Any) -> None:
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if words["model"]["type"] != "BPE" or words["model"].get("byte_fallback"):
        raise ModelError(
            "the model's tokenizer is not a byte-level BPE, which alone can be written as GGUF here: export a folder "
            "and convert it with llama.cpp's convert_hf_to_gguf.py"
        )
    known = {**words["model"]["vocab"], **{token["content"]: token["id"] for token in words["added_tokens"]}}
    special = {token["id"]: token["special"] for token in words["added_tokens"]}
    by_id = {at: token for token, at in known.items()}
    kinds = gguf.TokenType
    tokens = [by_id.get(at, f"[PAD{at}]") for at in range(config.vocab_size)]
    types = [
        kinds.UNUSED if at not in by_id
        else kinds.CONTROL if special.get(at)
        else kinds.USER_DEFINED if at in special
        else kinds.NORMAL
        for at in range(config.vocab_size)
    ]  # fmt: skip
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in words["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(words.get("pre_tokenizer") or {}))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    ends = _ends(folder, tokenizer)
    if ends:
        writer.add_eos_token_id(ends[-1])
        writer.add_eot_token_id(ends[-1])
    writer.add_add_bos_token(bool(tokenizer("a").input_ids[0] == tokenizer.bos_token_id is not None))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.get_chat_template())


def _ends(folder: Path, tokenizer: Any) -> list[int]:
    """Return the tokens at which a generation stops; with the one that ends a turn last."""
    file = folder / "generation_config.json"
    found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    found = tokenizer.eos_token_id if found is None else found
    return list(found) if isinstance(found, list) else [] if found is None else [found]


def _splitting(pre: dict[str, Any]) -> str:
    """Return llama.cpp's name for the way a tokenizer splits text before its merges, or refuse it."""
    parts = pre.get("pretokenizers", [pre])
    patterns = " ".join(str(part.get("pattern", {}).get("Regex", "")) for part in parts)
    if r"\p{N}{1,3}" in patterns:
        return "llama-bpe"
    if r"\p{N}" in patterns and "(?i:'s" in patterns:
        return "qwen2"
    if any(part.get("type") == "Digits" and part.get("individual_digits") for part in parts):
        return "smollm"
    if [part.get("type") for part in parts] == ["ByteLevel"]:
        return "gpt-2"
    raise ModelError(
        "the model's tokenizer splits text in a way that has no name in GGUF here: export a folder and convert it with "
        "llama.cpp's convert_hf_to_gguf.py"
    )


def _weights(folder: Path, names: Any) -> Iterator[tuple[str, str, Array]]:
    """Yield name, GGUF's name and fp32 values of every weight."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 (not a dict)
                there = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if there is None:
                    raise ModelError(f"{name} has no counterpart in GGUF: convert the folder with llama.cpp")
                yield name, there, content.get_tensor(name).to(torch.float32).numpy()


def _turned(name: str, weight: Array, config: Any) -> Array:
    """Reorder the rows of a query or key matrix from rotary halves to pairs."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((number for word, number in heads.items() if f".{word}." in name), None)
    if count is None:
        return weight
    rows = weight.shape[0]
    return weight.reshape(count, 2, rows // count // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _type_of(values: Array, kind: GgufType) -> GgufType:
    """Return the format of one tensor: fp32 for vectors, f16 if the width is not a multiple of the block."""
    if values.ndim < 2:
        return GgufType.f32
    return GgufType.f16 if kind is GgufType.q8_0 and values.shape[-1] % _BLOCK else kind


def _compare(file: Path, folder: Path, names: Any, how: _Kind, config: Any) -> None:
    """Read the file back and compare every weight."""
    there = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for name, name_there, weight in _weights(folder, names):
        tensor = there.pop(name_there, None)
        values = _turned(name, weight, config) if how.turns_rope else weight
        if tensor is None or not _is_near(tensor, values):
            raise ModelError(f"{file.name} does not hold the weights of {name}: the disk may be faulty, write it again")
    left = sorted(set(there) - {"rope_freqs.weight"})
    if left:
        raise ModelError(f"{file.name} holds {left[0]}, which the model does not have: write it again")


def _is_near(tensor: Any, wanted: Array) -> bool:
    """Whether values read back differ from what was written by no more than the format rounds."""
    kind = next(each for each in GgufType if each.value == tensor.tensor_type)
    found = gguf.quants.dequantize(tensor.data, kind.value).reshape(wanted.shape)
    if kind is GgufType.q8_0:
        blocks = np.abs(wanted.reshape(-1, _BLOCK))
        step = (blocks.max(1, keepdims=True) / 127).astype(np.float64)
        return bool((np.abs((found - wanted).reshape(-1, _BLOCK)) <= step * 0.5 + step * 127 * 2.0**-11 + 1e-12).all())
    smallest = 2.0**-24 if kind is GgufType.f16 else 1e-38  # fp16 has no smaller numbers
    return bool((np.abs(found - wanted) <= _ROUNDING[kind] * np.abs(wanted) + smallest).all())
