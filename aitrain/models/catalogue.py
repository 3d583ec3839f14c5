"""Models to start from: those on this machine, and some open ones to fetch. Facts as published."""

from __future__ import annotations

from dataclasses import dataclass

from aitrain.config.model import Model
from aitrain.errors import ModelError
from aitrain.models.assets import ASSETS, resolve
from aitrain.models.folder import inspect

HEAD = ["model", "parameters", "context", "licence", "template", "memory LoRA", "memory full", "where"]


@dataclass(frozen=True)
class Known:
    """A model on a public hub."""

    name: str
    parameters: float
    context: int
    licence: str
    template: str = "its own"


KNOWN = (
    Known("HuggingFaceTB/SmolLM2-360M-Instruct", 362e6, 8192, "Apache-2.0"),
    Known("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1.71e9, 8192, "Apache-2.0"),
    Known("Qwen/Qwen3-0.6B", 0.6e9, 40960, "Apache-2.0"),
    Known("Qwen/Qwen3-1.7B", 1.7e9, 40960, "Apache-2.0"),
    Known("Qwen/Qwen3-4B", 4.0e9, 40960, "Apache-2.0"),
    Known("Qwen/Qwen3-8B", 8.2e9, 40960, "Apache-2.0"),
    Known("utter-project/EuroLLM-1.7B-Instruct", 1.66e9, 4096, "Apache-2.0"),
    Known("utter-project/EuroLLM-9B-Instruct", 9.15e9, 4096, "Apache-2.0"),
    Known("mistralai/Mistral-7B-Instruct-v0.3", 7.25e9, 32768, "Apache-2.0"),
    Known("meta-llama/Llama-3.2-1B-Instruct", 1.24e9, 131072, "Llama 3.2 licence"),
    Known("meta-llama/Llama-3.1-8B-Instruct", 8.03e9, 131072, "Llama 3.1 licence"),
)
"""Source: the model cards at https://huggingface.co/NAME."""

LORA_BYTES, FULL_BYTES = 5.0, 16.0
"""Bytes per weight: frozen fp32 weights with a hundredth trained; or weights, gradients and AdamW's two moments."""


def rows(only_here: bool = False) -> list[list[str]]:
    """Return the models as rows of a table with the columns `HEAD`.

    Args:
        only_here: Leave out those that would have to be fetched.
    """
    found = [_of_asset(name) for name, asset in ASSETS.items() if asset.kind == "model"]
    shown = [row for row in found if row[-1] == "here" or not only_here]
    return shown + ([] if only_here else [_of_known(model) for model in KNOWN])


def _of_asset(name: str) -> list[str]:
    asset = ASSETS[name]
    try:
        facts = inspect(Model(path=str(resolve(f"asset:{name}"))))
    except ModelError:
        return [f"asset:{name}", "", "", asset.licence, "", "", "", "to fetch"]
    template = "its own" if facts.has_chat_template else "none"
    return [f"asset:{name}", *_size(facts.parameters, facts.context_tokens), asset.licence, template,
            *_memory(facts.parameters), "here"]  # fmt: skip


def _of_known(model: Known) -> list[str]:
    size = _size(model.parameters, model.context)
    return [model.name, *size, model.licence, model.template, *_memory(model.parameters), "hub"]


def _size(parameters: float | None, context: int | None) -> list[str]:
    if parameters is None:
        count = ""
    elif parameters >= 1e9:
        count = f"{parameters / 1e9:.2f} B"
    else:
        count = f"{parameters / 1e6:.{0 if parameters >= 1e7 else 1}f} M"
    return [count, "" if context is None else f"{context:,}"]


def _memory(parameters: float | None) -> list[str]:
    if parameters is None:
        return ["", ""]
    sizes = [each * parameters / 1e9 for each in (LORA_BYTES, FULL_BYTES)]
    return [f"{size:,.1f} GB" if size >= 0.1 else "below 0.1 GB" for size in sizes]
