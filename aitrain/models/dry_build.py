"""Builds a model without its weights: finds what loading would refuse, in seconds and without memory."""

from __future__ import annotations

from dataclasses import fields

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from aitrain.config.adapter import Adapter, Lora, Qlora
from aitrain.models.adapters import apply_adapter
from aitrain.models.load import LOADING_ERRORS, Located, load_tokenizer, model_fault, template_tokens
from aitrain.models.quiet import quiet


def dry_build(located: Located, adapter: Adapter) -> None:
    """Build the model and its adapter on torch's `meta` device, where tensors have shapes but no data.

    Args:
        located: The model.
        adapter: The recipe's group `adapter`; for QLoRA the layers of LoRA are looked for, without 4-bit kernels.

    Raises:
        ModelError: transformers has no such model, the model has no such attention, or a target module is no layer.
    """
    model, folder = located.model, located.folder
    trust = model.vetted_code_sha256 is not None
    if isinstance(adapter, Qlora):
        adapter = Lora(**{field.name: getattr(adapter, field.name) for field in fields(Lora)})
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust)
            built = AutoModelForCausalLM.from_config(
                config, attn_implementation=model.attention.name, trust_remote_code=trust
            )
    except LOADING_ERRORS as error:
        raise model_fault(model, error) from error
    tokens = template_tokens(located)
    with torch.device("meta"):
        if tokens.added:
            built.resize_token_embeddings(len(load_tokenizer(located)), mean_resizing=False)
        apply_adapter(built, adapter, trained_tokens=tokens.trained)
