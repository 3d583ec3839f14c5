"""Writes trained weights as a Hugging Face folder that plain transformers (and peft) load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import TrainableTokensWrapper
from transformers import PreTrainedModel

from aitrain.config import OPTION_OF, RunConfig
from aitrain.config.adapter import Lora, NoAdapter, Qlora
from aitrain.config.data import Sequences
from aitrain.config.model import ModelInit
from aitrain.config.paths import title_of
from aitrain.config.task import Preference, Sft
from aitrain.errors import ModelError
from aitrain.io import new_directory, write_text, writing
from aitrain.models.adapters import apply_adapter
from aitrain.models.folder import Kind, ModelFacts
from aitrain.models.licence import told_licence
from aitrain.models.load import Located, build_model, load_tokenizer, template_tokens
from aitrain.models.permissions import share_files
from aitrain.models.quiet import quiet
from aitrain.models.weights import with_weights


@dataclass(frozen=True)
class Card:
    """Facts about the run for the model card; `None` = not known."""

    run: str
    """Name of the run."""

    use: str = "text-generation"
    """Purpose of the model, as hubs name it (`pipeline_tag`)."""

    step: int | None = None
    """Optimizer steps of the checkpoint."""

    tokens: int | None = None
    """Trained tokens up to the checkpoint."""

    loss_before: float | None = None
    """Primary metric on the held-out data before training; a language model's loss is in nats per token."""

    loss_after: float | None = None
    """The same after training."""

    metric: str = "loss"
    """Name of the primary metric."""


def export_folder(
    config: RunConfig,
    located: Located,
    model: PreTrainedModel | PeftModel,
    to: Path,
    merge: bool,
    card: Card | None = None,
    go_on: Callable[[], None] = lambda: None,
    flat: bool = False,
    end_tokens: Sequence[int] = (),
    words: Any = None,
) -> None:
    """Write a run's model: `to/model`, and `to/adapter` when the run trained one.

    Args:
        config: The run's configuration.
        located: The base model.
        model: The trained model, in float32 on the CPU.
        to: Folder to make; must not exist.
        merge: Merge the adapter into the model; else only the adapter is written.
        card: Facts for the model card.
        go_on: Called between the parts of the work; an exception ends the work, and nothing is left behind.
        flat: Write one thing, into `to` itself: the model, or the adapter when it is not merged.
        end_tokens: Ids with which a turn of the assistant ends; generation also stops there.
        words: What is saved with the model: a tokenizer or an image processor; None = the base model's tokenizer.

    Raises:
        ModelError: There is no adapter, and only the adapter is asked for.
        AitrainError: The folder cannot be written; nothing is left of it then.
    """
    card = card or Card(run=config.run.name or to.name)
    go_on()
    words = load_tokenizer(located) if words is None else words
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = True
    if flat and not merge and not isinstance(model, PeftModel):
        raise ModelError("--adapter-only: this run trained no adapter, so only the full model can be exported")
    with writing(f"--to {to}", "free space there, or name another folder"), new_directory(to) as folder:
        if isinstance(model, PeftModel) and not (flat and merge):
            adapter = folder if flat else folder / "adapter"
            _write_adapter(model, located, adapter)
            _write_words(words, config, located, card, adapter, "peft")
            go_on()
        if isinstance(model, PeftModel) and merge:
            _untie_adapted(model)
            model = model.merge_and_unload()
        if not isinstance(model, PeftModel):
            _stop_at(model, end_tokens)
            place = folder if flat else folder / "model"
            torch.nn.Module.to(model, _dtype(config, located))
            _write_model(model, place)
            go_on()
            _write_words(words, config, located, card, place, "transformers")
        share_files(folder)


def _untie_adapted(model: PeftModel) -> None:
    """Untie the head from the embedding if one of the two was adapted or trained.

    Merged into shared weights, what was learned for one would change the other as well.
    """
    base: Any = model.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    inner = [_inside(layer) for layer in (embedding, head)]
    if any(layer is None for layer in inner) or inner[0].weight is not inner[1].weight:
        return
    if inner[0] is embedding and inner[1] is head:
        return  # neither was touched
    if isinstance(embedding, TrainableTokensWrapper) and isinstance(head, TrainableTokensWrapper):
        return  # single rows were trained, the same ones for both
    inner[1].weight = torch.nn.Parameter(inner[1].weight.detach().clone(), requires_grad=False)
    for settings in {id(part): part for part in (base.config, base.config.get_text_config())}.values():
        settings.tie_word_embeddings = False


def _inside(layer: Any) -> Any:
    """Return the model's layer inside peft's wrapper."""
    while True:
        if hasattr(layer, "base_layer"):
            layer = layer.base_layer
        elif hasattr(layer, "original_module"):
            layer = layer.original_module
        else:
            return layer


def _dtype(config: RunConfig, located: Located) -> torch.dtype:
    """Return the number format to write: the recipe's, else that of the base model."""
    if config.export.dtype is not None:
        return _DTYPES[config.export.dtype.name]
    return _DTYPES.get(located.facts.dtype or "", torch.float32)


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _stop_at(model: Any, end_tokens: Sequence[int]) -> None:
    """Let generation stop at the end of the assistant's turns, in addition to where the base model stops."""
    settings = getattr(model, "generation_config", None)
    if settings is None or not end_tokens:
        return
    known = settings.eos_token_id
    ids = [] if known is None else list(known) if isinstance(known, (list, tuple)) else [known]
    more = [token for token in end_tokens if token not in ids]
    if more:
        ids += more
        settings.eos_token_id = ids[0] if len(ids) == 1 else ids


def trained_model(
    config: RunConfig, located: Located, weights: Mapping[str, torch.Tensor]
) -> PreTrainedModel | PeftModel:
    """Build the run's model on the CPU in float32 and load the trained tensors.

    QLoRA's adapter is put on the unquantised base model.

    Args:
        config: The run's configuration.
        located: The base model.
        weights: Trained tensors, named as in `named_parameters()`.

    Raises:
        ModelError: A name is missing, unknown or of another shape, or the base model cannot be rebuilt.
    """
    adapter = config.adapter
    if isinstance(adapter, Lora) and config.model.init is ModelInit.random:
        raise ModelError(
            "an adapter on model.init=random cannot be exported: its base weights are not saved anywhere; "
            "train with model.init=pretrained or adapter=none"
        )
    if isinstance(adapter, Qlora):
        adapter = Lora(**{f.name: getattr(adapter, f.name) for f in fields(Lora)})
    tokens = template_tokens(located).trained
    model = apply_adapter(build_model(located, False, torch.float32), adapter, trained_tokens=tokens)
    with_weights(model, weights, config.model.path)
    return model


def _write_adapter(model: PeftModel, located: Located, folder: Path) -> None:
    base = located.model.path if located.facts.kind is Kind.hub else str(located.folder.resolve())
    for peft_config in model.peft_config.values():
        peft_config.base_model_name_or_path = base
        peft_config.inference_mode = True
    with quiet():
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)


def _write_model(model: PreTrainedModel, folder: Path) -> None:
    try:
        with quiet():
            model.save_pretrained(folder)
    except ValueError as error:
        # transformers refuses to save sampling settings that contradict each other, which some published models bring
        if "generation" not in str(error).lower():
            raise
        raise ModelError(f"the base model's generation_config.json is not valid: fix it there ({error})") from error


def _write_words(words: Any, config: RunConfig, located: Located, card: Card, folder: Path, library: str) -> None:
    with quiet():
        words.save_pretrained(folder)
    write_text(folder / "README.md", model_card(config, located.facts, card, library))


_SERVE = """## Use it

In place of FOLDER, the path of this folder:

```bash
aitrain chat FOLDER
vllm serve FOLDER
```

For llama.cpp and Ollama, `aitrain export RUN --to mine.gguf` writes one file: `llama-server -m mine.gguf`, or
`FROM ./mine.gguf` in a Modelfile for `ollama create`.""".splitlines()
"""Last lines of the card of a language model: how to serve it."""


def model_card(config: RunConfig, facts: ModelFacts, card: Card, library: str) -> str:
    """Return the model card: where the model comes from and what was done to it.

    Args:
        config: The run's configuration.
        facts: What is known about the base model.
        card: Facts about the run.
        library: `transformers` or `peft`.
    """
    reference, hub = str(config.model.path), facts.kind is Kind.hub
    base = reference if hub or reference.startswith("asset:") else Path(reference).name
    licence = told_licence(reference, facts.licence)
    head: dict[str, Any] = {"library_name": library, "pipeline_tag": card.use}
    if hub:
        head["base_model"] = reference
    if licence:
        head["license"] = licence.lower()
    longest = config.data.sequence_tokens if isinstance(config.data, Sequences) else None
    rows: list[tuple[str, Any]] = [
        ("base model", f"{base}, revision {config.model.revision}" if config.model.revision else base),
        ("started from", f"{config.model.init.name} weights"),
        ("licence of the base model", licence or "see the base model"),
        ("task", OPTION_OF[type(config.task)]),
        ("adapter", OPTION_OF[type(config.adapter)]),
        ("data", title_of(config.data.path)),
        ("longest sequence", f"{longest} tokens" if longest is not None else None),
        ("global batch", f"{config.trainer.global_batch_samples} {config.task.sample}s"),
        ("optimizer", f"{OPTION_OF[type(config.optim)]}, learning rate {config.optim.lr:g}"),
        ("seed", config.seed),
        ("steps", card.step),
        (f"trained {config.task.unit}", None if card.tokens is None else f"{card.tokens:,}"),
        (f"held-out {card.metric} before", None if card.loss_before is None else f"{card.loss_before:.4f}"),
        (f"held-out {card.metric} after", None if card.loss_after is None else f"{card.loss_after:.4f}"),
    ]
    lines = ["---", *(f"{key}: {value}" for key, value in head.items()), "---", "", f"# {card.run}", ""]
    lines += ["Trained with aitrain.", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in rows if value is not None]
    if isinstance(config.adapter, Qlora):
        lines += ["", "The adapter was trained on 4-bit weights and is applied to the unquantised ones."]
    elif not isinstance(config.adapter, NoAdapter) and library == "transformers":
        lines += ["", "The adapter is merged into the weights."]
    if library == "transformers" and card.use == "text-generation":
        talks = isinstance(config.task, (Sft, Preference))
        lines += ["", *(line for line in _SERVE if talks or not line.startswith("aitrain chat"))]
    return "\n".join(lines) + "\n"
