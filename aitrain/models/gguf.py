"""Turns a GGUF file into a Hugging Face folder, once."""

from __future__ import annotations

import hashlib
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from aitrain.errors import ModelError
from aitrain.io import new_directory
from aitrain.models.assets import cache
from aitrain.models.gguf_header import FULL_PRECISION, GgufHeader, read_header
from aitrain.models.permissions import share_files
from aitrain.models.quiet import first_line, quiet

ROUND_TRIP = ("The year 1637: it's 12,345.67 apples.", "Één café; de coördinatie, en 's avonds\n\n  regen.")
"""Texts that a tokenizer must reproduce unchanged."""


def convert(gguf_file: Path, to: Path) -> None:
    """Write a GGUF model as a Hugging Face folder: safetensors, config, tokenizer, chat template.

    Args:
        gguf_file: The file.
        to: The folder to make; must not exist.

    Raises:
        ModelError: transformers cannot read the architecture, or the tokenizer is not right.
    """
    with new_directory(to) as folder:
        write_folder(gguf_file, folder)


def converted(gguf_file: Path) -> Path:
    """Return the converted folder of a GGUF file, kept in the cache under the file's checksum.

    Args:
        gguf_file: The file.

    Raises:
        ModelError: The file cannot be converted, or the cache cannot be written.
    """
    with open(gguf_file, "rb") as content:
        checksum = hashlib.file_digest(content, "sha256").hexdigest()
    place = cache() / "gguf" / f"{gguf_file.stem}-{checksum[:16]}"
    if not place.is_dir():
        try:
            convert(gguf_file, place)
        except OSError as error:
            if not place.is_dir():  # another process may have been faster, which is fine
                raise ModelError(
                    f"{place} cannot be written: {error}; set AITRAIN_CACHE to a folder of yours"
                ) from error
    return place


def storage_dtype(header: GgufHeader) -> torch.dtype:
    """Choose the dtype on disk: bfloat16 for 2- to 6-bit weights, float32 when most weights carry more.

    Rounding to bfloat16 (8 bits) moves a weight by at most 2**-9 of itself, an order below the step of a 6-bit weight,
    and halves the disk.

    Args:
        header: The file's header.
    """
    exact = sum(prod(shape) for name, shape in header.shapes.items() if header.types[name] in FULL_PRECISION)
    return torch.float32 if 2 * exact > header.parameters() else torch.bfloat16


def write_folder(gguf_file: Path, folder: Path) -> None:
    """Fill an existing folder with the converted model.

    Args:
        gguf_file: The file.
        folder: An empty folder.

    Raises:
        ModelError: transformers cannot read the architecture, or the tokenizer is not right.
    """
    header = read_header(gguf_file)
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": str(gguf_file.parent),
        "gguf_file": gguf_file.name,
        "local_files_only": True,
    }
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(**where)
            loaded: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, ImportError, LookupError) as error:
        raise ModelError(
            f"{gguf_file} cannot be converted: {first_line(error)}; name the original Hugging Face folder"
        ) from error
    model, loading = loaded
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ModelError(f"{len(missing)} of the model's weights are missing from {gguf_file}: download it again")
    _check_tokenizer(gguf_file, header, tokenizer)
    _describe_tokenizer(header, tokenizer)
    rebuilt = _without_quantisation(model, storage_dtype(header))
    with quiet():
        rebuilt.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    share_files(folder)


def _without_quantisation(model: Any, dtype: torch.dtype) -> Any:
    """Rebuild the model from its config with the same weights: the loaded object cannot be saved."""
    config = model.config
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    with torch.device("meta"):
        rebuilt = AutoModelForCausalLM.from_config(config, dtype=dtype)
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    rebuilt.load_state_dict(state, strict=True, assign=True)
    rebuilt.generation_config = model.generation_config
    return rebuilt


def _check_tokenizer(gguf_file: Path, header: GgufHeader, tokenizer: PreTrainedTokenizerBase) -> None:
    for text in ROUND_TRIP:
        back = str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]))
        if back.strip() != text.strip():
            raise ModelError(
                f"{gguf_file}: its tokenizer turns {text!r} into {back!r}: name the original Hugging Face folder"
            )
    eos = header.fields.get("tokenizer.ggml.eos_token_id")
    if isinstance(eos, int) and tokenizer.eos_token_id != eos:
        raise ModelError(
            f"{gguf_file}: end-of-text is token {eos} in the file but {tokenizer.eos_token_id} in its tokenizer: "
            "name the original Hugging Face folder"
        )


def _describe_tokenizer(header: GgufHeader, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the model's context length into the tokenizer, and remove its loading options from the saved settings."""
    name = header.fields.get("general.architecture")
    context = header.fields.get(f"{name}.context_length")
    if isinstance(context, int):
        tokenizer.model_max_length = context
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
