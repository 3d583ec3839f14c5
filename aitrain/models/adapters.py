"""Adds LoRA, DoRA or QLoRA matrices to a model's linear layers, through peft."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from aitrain.config.adapter import Adapter, Dora, Lora, NoAdapter, Qlora
from aitrain.errors import ModelError
from aitrain.io.imports import without_collection

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class TrainableSummary:
    """Number of trained weights of a model."""

    trainable: int
    """Weights that are trained."""

    total: int
    """All weights, including those of the adapter."""

    @property
    def share(self) -> float:
        """Trained share of all weights."""
        return self.trainable / max(self.total, 1)


def apply_adapter(
    model: PreTrainedModel,
    adapter: Adapter,
    autocast_adapter_dtype: bool = False,
    kind: str = "CAUSAL_LM",
    trained_tokens: Sequence[int] = (),
) -> PreTrainedModel | PeftModel:
    """Wrap a model with the recipe's adapter; without one it is returned unchanged.

    Args:
        model: The loaded model.
        adapter: The recipe's group `adapter`.
        autocast_adapter_dtype: Whether adapter matrices next to bfloat16 weights are float32; ZeRO-3 in bfloat16
            needs one dtype for all.
        kind: peft's word for the task; a classifier's new head is trained together with the adapter.
        trained_tokens: Ids of tokens whose rows of embedding and head are trained together with the adapter.

    Returns:
        The model whose only trained weights are the adapter's, or the model itself.

    Raises:
        ModelError: A target module matches no layer, or 4-bit weights are asked of a model on the CPU.
    """
    if isinstance(adapter, NoAdapter):
        return model
    if not isinstance(adapter, Lora):
        raise TypeError(f"adapter of unknown kind {type(adapter).__name__}")
    with without_collection():
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if isinstance(adapter, Qlora):
        if not getattr(model, "is_loaded_in_4bit", False):
            raise ModelError(
                "adapter=qlora needs a GPU (4-bit kernels), and the model is not loaded in 4 bits: write adapter=lora"
            )
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    for key in ("target_modules", "modules_to_save"):
        _check_targets(model, key, list(getattr(adapter, key) or ()))
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # peft says int and divides it: a float is right too
        lora_dropout=adapter.dropout,
        target_modules="all-linear" if adapter.target_modules is None else list(adapter.target_modules),
        modules_to_save=None if adapter.modules_to_save is None else list(adapter.modules_to_save),
        use_dora=isinstance(adapter, Dora),
        trainable_token_indices=_token_rows(model, adapter, trained_tokens),
        bias="none",
        task_type=kind,  # type: ignore[arg-type]
    )
    try:
        with warnings.catch_warnings():
            # peft asks transformers by a name that is going out of use; no user of ours can act on that
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            # the export unties what was tied, so nothing is lost where an embedding is adapted and its head is not
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
            warnings.filterwarnings("ignore", message=".*ensure_weight_tying.*")
            return get_peft_model(model, config, autocast_adapter_dtype=autocast_adapter_dtype)  # type: ignore[arg-type]
    except ValueError as error:
        raise ModelError(f"adapter does not fit {type(model).__name__}: {str(error).splitlines()[0]}") from error


def _token_rows(model: PreTrainedModel, adapter: Lora, tokens: Sequence[int]) -> dict[str, list[int]] | None:
    """Return the layers of which peft trains single rows: the embedding, and the head where it has its own weights."""
    if not tokens:
        return None
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if layers[1] is not None and layers[1].weight is layers[0].weight:
        layers = layers[:1]
    names = [name for layer in layers for name, module in model.named_modules() if module is layer]
    whole = tuple(adapter.modules_to_save or ())
    return {name: list(tokens) for name in names if not name.endswith(whole or ("//",))} or None


def linear_endings(model: torch.nn.Module) -> list[str]:
    """Return the last parts of the names of all linear layers.

    Args:
        model: Any model.
    """
    return sorted(
        {name.rsplit(".", 1)[-1] for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    )


def _check_targets(model: torch.nn.Module, key: str, targets: list[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    lost = [target for target in targets if not any(name == target or name.endswith(f".{target}") for name in names)]
    if lost:
        raise ModelError(
            f"adapter.{key}: {', '.join(lost)} matches no layer of {type(model).__name__}: "
            f"its linear layers end with {', '.join(linear_endings(model))}"
        )


def trainable_summary(model: torch.nn.Module) -> TrainableSummary:
    """Count trained and all weights; a weight sharded by DeepSpeed counts in full.

    Args:
        model: Any model, wrapped or not.
    """
    sizes = [(getattr(weight, "ds_numel", weight.numel()), weight.requires_grad) for weight in model.parameters()]
    return TrainableSummary(sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes))
