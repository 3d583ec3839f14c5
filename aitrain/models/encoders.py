"""Builds a model with a task head; only the head may start from random weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from aitrain.config.model import ModelInit
from aitrain.errors import ModelError
from aitrain.models.load import LOADING_ERRORS, Located, model_fault
from aitrain.models.quiet import drawn_on_the_host, quiet

_log = logging.getLogger(__name__)
HEADS = (
    "classifier",
    "cls_classifier",
    "distillation_classifier",
    "score",
    "pooler",
    "pre_classifier",
    "classification_head",
    "qa_outputs",
    "head",
)
"""Prefixes of weights that a model for another task may lack."""


def build_encoder(located: Located, auto: str, settings: Mapping[str, Any]) -> PreTrainedModel:
    """Load a model with a task head, or initialise it from its config when `model.init=random`.

    Args:
        located: The model.
        auto: Name of transformers' automatic class, for instance `AutoModelForSequenceClassification`.
        settings: Settings for the config: number and names of the labels.

    Returns:
        The model in evaluation mode, in float32.

    Raises:
        ModelError: The model cannot be loaded, has no such head, or the files lack weights of its body.
    """
    model, folder, kind = located.model, located.folder, getattr(transformers, auto)
    trust = model.vetted_code_sha256 is not None
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": trust}
    try:
        with quiet(), drawn_on_the_host():
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust, **settings)
            options |= _attention(located, config)
            config.update({key: value for key, value in settings.items() if not hasattr(config, key)})
            if model.init is ModelInit.random:
                return cast(PreTrainedModel, kind.from_config(config, **options)).eval()
            loaded: Any = kind.from_pretrained(
                str(folder),
                config=config,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
    except torch.OutOfMemoryError:
        raise
    except LOADING_ERRORS as error:
        if "allocate memory" in str(error):
            raise
        raise model_fault(model, error) from error
    built, loading = loaded
    _refuse_lost(located, built, loading)
    return cast(PreTrainedModel, built)


def _attention(located: Located, config: Any) -> dict[str, str]:
    """Return the attention to build with; none for a convolutional model."""
    heads = any("num_heads" in key or "attention_heads" in key or key == "n_head" for key in config.to_dict())
    return {"attn_implementation": located.model.attention.name} if heads else {}


def _refuse_lost(located: Located, built: Any, loading: Mapping[str, Any]) -> None:
    """Refuse a body with missing weights, and report which parts of the head are new."""
    mismatched = [entry[0] if isinstance(entry, (tuple, list)) else entry for entry in loading["mismatched_keys"]]
    fresh = sorted({*loading["missing_keys"], *mismatched})
    body = getattr(built, "base_model_prefix", "")
    lost = [name for name in fresh if not set(name.removeprefix(f"{body}.").split(".")) & set(HEADS)]
    if lost:
        raise ModelError(
            f"{len(lost)} of the model's weights are missing from model.path={located.model.path} (first: {lost[0]}). "
            "The download may be incomplete: copy the model again"
        )
    if fresh:
        _log.info("new weights, randomly initialised: %s", ", ".join(fresh))


def dry_build_encoder(located: Located, auto: str, settings: Mapping[str, Any]) -> PreTrainedModel:
    """Build the model on torch's `meta` device, where tensors have shapes but no data.

    Args:
        located: The model.
        auto: Name of transformers' automatic class.
        settings: Settings for the config.

    Raises:
        ModelError: transformers has no such model, or the model has no such head or attention.
    """
    trust = located.model.vetted_code_sha256 is not None
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(
                str(located.folder), local_files_only=True, trust_remote_code=trust, **settings
            )
            kind = getattr(transformers, auto)
            built = kind.from_config(config, trust_remote_code=trust, **_attention(located, config))
    except LOADING_ERRORS as error:
        raise model_fault(located.model, error) from error
    return cast(PreTrainedModel, built)
