"""Builds the model and the tokenizer that a recipe names; each fault is one line, and no weight is silently
initialised.
"""

from __future__ import annotations

import logging
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from aitrain.config.model import Model, ModelInit, ModelKind
from aitrain.errors import MissingExtraError, ModelError
from aitrain.io.home import user_path
from aitrain.models import store
from aitrain.models.chat_templates import NamedTemplate, named
from aitrain.models.folder import Kind, ModelFacts, inspect
from aitrain.models.gguf import converted
from aitrain.models.quiet import drawn_on_the_host, first_line, quiet

_log = logging.getLogger(__name__)
LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    LookupError,
    TypeError,
    AttributeError,
    SafetensorError,
)


@dataclass(frozen=True)
class Located:
    """An inspected model: what the recipe says, what it is, and its Hugging Face folder."""

    model: Model
    facts: ModelFacts
    folder: Path

    def verified(self) -> Located:
        """Return this model, unless its files are not those that were fetched; reads every file of a fetched model.

        Raises:
            ModelError: They are not.
        """
        store.verify(self.folder)
        return self


def locate(model: Model, wanted: ModelKind = ModelKind.causal) -> Located:
    """Locate the model of `model.path`: a GGUF file is converted and a hub name downloaded, once.

    With several ranks, one calls it and broadcasts the result.

    Args:
        model: The recipe's group `model`.
        wanted: Kind of model that the task starts from.

    Raises:
        ModelError: The model cannot be used; every reason is told.
    """
    facts = inspect(model, wanted)
    if facts.faults:
        raise ModelError("\n".join(facts.faults))
    if facts.kind is Kind.hub:
        folder = _downloaded(model)
        found = replace(inspect(_at(model, folder), wanted), kind=Kind.hub)
        if found.faults:
            raise ModelError("\n".join(found.faults))
        return Located(model, found, folder)
    path = Path(facts.path)
    if path.suffix != ".gguf":
        return Located(model, facts, path)
    folder = converted(path)
    # the conversion decides the number format, and counts its weights anew
    return Located(model, replace(inspect(_at(model, folder), wanted), kind=facts.kind), folder)


def _at(model: Model, folder: Path) -> Model:
    return Model(
        path=str(folder), init=model.init, attention=model.attention, vetted_code_sha256=model.vetted_code_sha256
    )


def _downloaded(model: Model) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            return Path(snapshot_download(str(model.path), revision=model.revision, allow_patterns=store.PATTERNS))
    except (OSError, ValueError) as error:
        at = f"@{model.revision}" if model.revision else ""
        raise ModelError(
            f"model.path={model.path}{at} cannot be downloaded: {first_line(error)}; check the name, or name "
            "a local folder"
        ) from error


def load_tokenizer(located: Located) -> PreTrainedTokenizerFast:
    """Load the tokenizer, with the recipe's chat template if it names one.

    Args:
        located: The model.

    Returns:
        A tokenizer that has a padding token (end-of-text when it brings none).

    Raises:
        ModelError: There is no usable tokenizer, or it has neither a padding nor an end-of-text token.
    """
    model, folder = located.model, located.folder
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=model.vetted_code_sha256 is not None
            )
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"model.path={model.path}: its tokenizer cannot be loaded: {first_line(error)}") from error
    template = named(model.chat_template)
    if template is not None:
        _give_template(tokenizer, template)
    elif model.chat_template is not None:
        try:
            tokenizer.chat_template = user_path(model.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"model.chat_template={model.chat_template} cannot be read: {error}") from None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"model.path={model.path}: its tokenizer has neither a padding nor an end-of-text token: "
                "add eos_token to its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    rows, last = located.facts.vocab_size, max(tokenizer.get_vocab().values(), default=0)
    if rows is not None and last >= rows and template is None:
        raise ModelError(
            f"model.path={model.path}: its tokenizer has {last + 1} tokens, but the embedding only {rows} rows: use "
            "the tokenizer of this model, or enlarge the model with model.resize_token_embeddings() and save it"
        )
    return cast(PreTrainedTokenizerFast, tokenizer)


def _give_template(tokenizer: Any, template: NamedTemplate) -> None:
    """Set the template that the recipe names, and add its missing tokens to the tokenizer."""
    missing = [name for name in template.needs if getattr(tokenizer, name, None) is None]
    if missing:
        raise ModelError(
            f"model.chat_template={template.name} needs {' and '.join(missing)}, which the model's tokenizer does not "
            "have: write model.chat_template=chatml"
        )
    tokenizer.chat_template = template.source
    special = [token for token in template.tokens if token not in tokenizer.all_special_tokens]
    if special:
        tokenizer.add_special_tokens({"extra_special_tokens": special}, replace_extra_special_tokens=False)


@dataclass(frozen=True)
class TemplateTokens:
    """Special tokens of a template."""

    added: list[str]
    """Tokens that the tokenizer did not have: their rows of the embedding are new."""

    trained: list[int]
    """Ids whose rows are trained together with an adapter; the rest of the embedding stays frozen."""


def template_tokens(located: Located) -> TemplateTokens:
    """Return the special tokens of the template that the recipe names.

    Existing tokens that the base model has not learned are trained too: a base model without a chat template
    has never seen them.

    Args:
        located: The model.

    Raises:
        ModelError: The tokenizer cannot be loaded.
    """
    template = named(located.model.chat_template)
    if template is None:
        return TemplateTokens([], [])
    own = load_tokenizer(replace(located, model=replace(located.model, chat_template=None))).get_vocab()
    added = [token for token in template.tokens if token not in own]
    known = load_tokenizer(located).get_vocab()
    trained = added if located.facts.has_chat_template else template.tokens
    return TemplateTokens(added, [known[token] for token in trained])


def build_model(
    located: Located, adapter_is_quantised: bool = False, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load the model, or start it from its config alone when `model.init=random` (the caller sets the seed).

    Also works inside DeepSpeed's ZeRO-3 while an `HfDeepSpeedConfig` is alive: each weight is then
    sharded as it is loaded.

    Args:
        located: The model.
        adapter_is_quantised: Whether the linear layers are stored in 4-bit NF4 on the current GPU.
        dtype: Of the weights that are not quantised.

    Returns:
        The model in evaluation mode, without key-value cache.

    Raises:
        ModelError: The model cannot be loaded, or the files lack weights.
        MissingExtraError: 4-bit weights need bitsandbytes.
    """
    model, folder = located.model, located.folder
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": model.attention.name,
        "trust_remote_code": model.vetted_code_sha256 is not None,
    }
    if model.init is ModelInit.random and adapter_is_quantised:
        raise ModelError("model.init=random cannot be combined with adapter=qlora, which needs pretrained weights")
    try:
        with quiet():
            built = (
                _from_config(folder, options)
                if model.init is ModelInit.random
                else _from_files(model, folder, options | (_four_bit() if adapter_is_quantised else {}))
            )
    except torch.OutOfMemoryError:
        raise
    except LOADING_ERRORS as error:
        if "allocate memory" in str(error):
            raise
        raise model_fault(model, error) from error
    if template_tokens(located).added:
        _add_rows(built, len(load_tokenizer(located)))
    built.config.use_cache = False
    return built


def _add_rows(model: PreTrainedModel, tokens: int) -> None:
    """Add rows for new tokens to embedding and head, initialised to the mean of the existing rows."""
    rows = int(cast(Any, model.get_input_embeddings()).num_embeddings)
    if tokens <= rows:
        return
    with quiet():
        model.resize_token_embeddings(tokens, mean_resizing=False)
    head = model.get_output_embeddings()
    layers = [model.get_input_embeddings(), *([] if head is None else [head])]
    weights = list({id(layer.weight): layer.weight for layer in layers}.values())
    with _gathered(weights), torch.no_grad():
        for weight in weights:
            if weight.device.type != "meta":
                weight[rows:] = weight[:rows].double().mean(0).to(weight.dtype)


def _gathered(weights: list[torch.Tensor]) -> AbstractContextManager[Any]:
    """Return a context in which weights sharded by ZeRO-3 are gathered."""
    if not any(hasattr(weight, "ds_id") for weight in weights):
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(weights, modifier_rank=0)
    return context


def model_fault(model: Model, error: BaseException) -> ModelError:
    """Return why transformers cannot build a model, with our own advice if the message names keys that aitrain does not
    have.

    Args:
        model: The recipe's group `model`.
        error: What it raised.
    """
    if isinstance(error, ModelError):
        return error
    if re.search(r"does not support .*(attention|Flash)", str(error)):
        kind = str(error).split(" ", 1)[0]
        return ModelError(
            f"model.attention={model.attention.name} is not supported by {kind}: write model.attention=eager, which "
            "every model has"
        )
    return ModelError(f"model.path={model.path} cannot be loaded: {first_line(error)}")


def _from_config(folder: Path, options: dict[str, Any]) -> PreTrainedModel:
    trust = options["trust_remote_code"]
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust)
    with drawn_on_the_host():
        return cast(PreTrainedModel, AutoModelForCausalLM.from_config(config, **options))


def _from_files(model: Model, folder: Path, options: dict[str, Any]) -> PreTrainedModel:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True, **options
    )
    built, loading = loaded
    missing, extra = sorted(loading["missing_keys"]), sorted(loading["unexpected_keys"])
    if missing:
        raise ModelError(
            f"{len(missing)} of the model's weights are missing from model.path={model.path} (first: {missing[0]}). "
            "The download may be incomplete: copy the model again"
        )
    if extra:
        _log.warning("model.path=%s has %d weights that are not used, first %s", model.path, len(extra), extra[0])
    return cast(PreTrainedModel, built)


def _four_bit() -> dict[str, Any]:
    if not torch.cuda.is_available():
        raise ModelError("adapter=qlora needs a GPU (4-bit kernels), and this process sees none: write adapter=lora")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "adapter=qlora needs bitsandbytes, which is not installed: pip install 'aitrain[qlora]'"
        ) from error
    from transformers import BitsAndBytesConfig

    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": quantisation, "device_map": {"": torch.cuda.current_device()}}
