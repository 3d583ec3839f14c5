"""Inspects a model folder, a GGUF file or a name without loading torch: what it is and why it cannot be used."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from aitrain.config.model import Model, ModelInit, ModelKind
from aitrain.errors import ModelError
from aitrain.io.home import user_path
from aitrain.models import store
from aitrain.models.assets import resolve
from aitrain.models.gguf_header import read_header
from aitrain.models.licence import licence_of
from aitrain.models.safetensors_header import Tensor, count_parameters, main_dtype
from aitrain.models.weight_files import PICKLES, SAFE, read_json, weight_faults

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("spiece.model",), ("vocab.json", "merges.txt"))
CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


DTYPES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"} | {
    "FLOAT32": "fp32",
    "BFLOAT16": "bf16",
    "FLOAT16": "fp16",
}
"""Names of number formats in safetensors and in `config.json`."""


class Kind(Enum):
    """What `model.path` names."""

    folder = "folder"
    gguf = "gguf"
    hub = "hub"
    asset = "asset"


@dataclass
class ModelFacts:
    """What is known about a model before it is loaded; `None` = not known."""

    path: str
    """Its location: `model.path`, or the folder of an asset."""

    kind: Kind
    """What `model.path` names."""

    faults: list[str] = field(default_factory=list)
    """Why it cannot be used, one sentence each."""

    context_tokens: int | None = None
    """Longest sequence that the model was made for."""

    hidden_size: int | None = None
    """Width of the residual stream."""

    layers: int | None = None
    """Transformer blocks."""

    vocab_size: int | None = None
    """Rows of the embedding."""

    intermediate_size: int | None = None
    """Width of the MLP."""

    key_value_share: float = 1.0
    """Key-value heads per query head."""

    parameters: int | None = None
    """Weights: counted in the files' headers, or estimated from the config when there are no files."""

    architecture: str | None = None
    """Class name of a Hugging Face model, or the name in a GGUF file."""

    has_chat_template: bool = False
    """Whether the model has a chat template."""

    code_sha256: str | None = None
    """Checksum of the Python code that the model needs from its folder; `None` = it needs none."""

    tied: bool | None = None
    """Whether the output head is the embedding."""

    licence: str | None = None
    """As stated in its README.md."""

    dtype: str | None = None
    """Number format of most weights: `fp32`, `bf16` or `fp16`."""


def inspect(model: Model, wanted: ModelKind = ModelKind.causal) -> ModelFacts:
    """Inspect `model.path` and collect every reason not to use it.

    Args:
        model: The recipe's group `model`.
        wanted: Kind of model that the task starts from.

    Returns:
        Facts and faults; nothing is raised for a model that cannot be used.
    """
    found = _inspect(model, wanted)
    fetched = (Path(found.path) / store.MANIFEST).is_file()
    if model.revision is not None and found.kind is not Kind.hub and not fetched:
        found.faults.append(f"model.revision={model.revision!r} has no effect on a local model: remove it")
    return found


def _inspect(model: Model, wanted: ModelKind) -> ModelFacts:
    given = str(model.path)
    if given.startswith("asset:"):
        try:
            path = resolve(given)
        except ModelError as error:
            return ModelFacts(given, Kind.asset, [f"model.path={given}: {error}"])
        return (
            _inspect_gguf(path, Kind.asset)
            if path.suffix == ".gguf"
            else _inspect_folder(path, Kind.asset, model, wanted)
        )
    path = exported(user_path(given))
    if path.is_dir():
        return _inspect_folder(path, Kind.folder, model, wanted)
    if path.suffix == ".gguf":
        return _inspect_gguf(path, Kind.gguf, model)
    if path.is_file():
        return ModelFacts(given, Kind.folder, [_file_fault(path)])
    if not HUB_NAME.fullmatch(given):
        return ModelFacts(
            given, Kind.folder, [(f"model.path={given} does not exist: name a Hugging Face folder or a .gguf file")]
        )
    try:
        stored = store.find(model)
    except ModelError as error:
        return ModelFacts(given, Kind.hub, [str(error)])
    if stored is not None:
        return _inspect_folder(stored.folder, Kind.folder, model, wanted)
    facts = ModelFacts(given, Kind.hub)
    if not model.allow_network:
        facts.faults.append(
            f"model.path={given} is not a folder here. If it is a model on a hub, fetch it first: run `aitrain fetch "
            f"RECIPE model.path={given}` where there is a network, or add model.allow_network=true"
        )
    return facts


def exported(path: Path) -> Path:
    """Return the model that a run has exported, when a path is a run directory; else the path.

    Args:
        path: What the user names.
    """
    model = path / "export" / "model"
    return model if (path / "run.yaml").is_file() and (model / "config.json").is_file() else path


def _file_fault(path: Path) -> str:
    if any(path.match(pattern) for pattern in PICKLES):
        return f"model.path={path} is a pickle file, which can run arbitrary code: {SAFE}"
    return f"model.path={path} is a file: name the folder that contains it (with config.json), or a .gguf file"


def _inspect_gguf(path: Path, kind: Kind, model: Model | None = None) -> ModelFacts:
    facts = ModelFacts(str(path), kind)
    if not path.is_file():
        facts.faults.append(f"model.path={path} does not exist")
        return facts
    try:
        header = read_header(path)
    except ModelError as error:
        facts.faults.append(f"model.path: {error}")
        return facts
    name = str(header.fields.get("general.architecture", ""))

    def number(key: str) -> int | None:
        value = header.fields.get(f"{name}.{key}")
        return int(value) if isinstance(value, int) else None

    facts.architecture, facts.parameters = name or None, header.parameters()
    facts.context_tokens, facts.layers = number("context_length"), number("block_count")
    facts.hidden_size, facts.intermediate_size = number("embedding_length"), number("feed_forward_length")
    heads, key_values = number("attention.head_count"), number("attention.head_count_kv")
    facts.key_value_share = key_values / heads if heads and key_values else 1.0
    tokens = header.fields.get("tokenizer.ggml.tokens")
    facts.vocab_size = int(tokens) if isinstance(tokens, int) else None
    facts.has_chat_template = "tokenizer.chat_template" in header.fields
    facts.licence = str(header.fields["general.license"]).lower() if "general.license" in header.fields else None
    facts.tied = "output.weight" not in header.shapes
    if not header.shapes:
        facts.faults.append(f"model.path={path} contains no weights")
    if facts.vocab_size is None:
        facts.faults.append(
            f"model.path={path} contains no tokenizer: convert the model to a Hugging Face folder with one"
        )
    if model is not None and model.vetted_code_sha256 is not None:
        facts.faults.append(_no_code_fault(model.vetted_code_sha256))
    return facts


def _inspect_folder(path: Path, kind: Kind, model: Model, wanted: ModelKind) -> ModelFacts:
    facts = ModelFacts(str(path), kind)
    config_file = path / "config.json"
    if not config_file.is_file():
        facts.faults.append(_no_config_fault(path))
        return facts
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        facts.faults.append(f"model.path: {config_file} is not valid JSON ({error}): copy the model again")
        return facts
    _read_config(facts, config)
    facts.licence = licence_of(path)
    facts.has_chat_template = _has_chat_template(path)
    facts.faults += [*_kind_faults(path, config, wanted), *_code_faults(path, config, model, facts)]
    facts.faults += _beside_faults(path, wanted)
    if model.init is ModelInit.random:
        facts.parameters = _estimate_parameters(facts)
    else:
        tensors: dict[str, Tensor] = {}
        facts.faults += list(weight_faults(path, tensors))
        facts.parameters = count_parameters(tensors) if tensors else _estimate_parameters(facts)
        facts.dtype = DTYPES.get(main_dtype(tensors) or "", facts.dtype)
        if facts.tied is None and tensors:
            facts.tied = not any(name.endswith("lm_head.weight") for name in tensors)
    return facts


def _beside_faults(path: Path, wanted: ModelKind) -> Iterator[str]:
    """Yield what a model of this kind lacks: a tokenizer or an image processor."""
    if wanted is ModelKind.image:
        if not (path / "preprocessor_config.json").is_file():
            yield (
                f"model.path={path} has no preprocessor_config.json, which says how images are prepared: copy that "
                "file of the model into the folder, or name an image model"
            )
    elif not any(all((path / name).is_file() for name in names) for names in TOKENIZERS):
        yield (
            f"model.path={path} has no tokenizer: copy tokenizer.json and tokenizer_config.json of the model "
            "into the folder"
        )


def _no_config_fault(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        return (
            f"model.path={path} holds an adapter, not a model: name the base model, or export the run with "
            "export.merge=true"
        )
    if (path / "run.yaml").is_file():
        return (
            f"model.path={path} is a run without an exported model: run `aitrain export {path} --to DIR` and name DIR"
        )
    ggufs = sorted(path.glob("*.gguf"))
    if ggufs:
        return f"model.path={path} has no config.json: write model.path={ggufs[0]}"
    return f"model.path={path} has no config.json: name a folder that save_pretrained wrote"


def _read_config(facts: ModelFacts, config: dict) -> None:
    """Fill in the sizes; names differ between model families, and models with images keep them in `text_config`."""
    inner = config.get("text_config")
    sizes = {**config, **inner} if isinstance(inner, dict) else config

    def first(*keys: str) -> int | None:
        return next((int(sizes[key]) for key in keys if isinstance(sizes.get(key), int)), None)

    facts.context_tokens = first("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx", "seq_length")
    facts.hidden_size = first("hidden_size", "n_embd", "d_model", "dim")
    facts.layers = first("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    facts.vocab_size = first("vocab_size")
    facts.intermediate_size = first("intermediate_size", "n_inner", "ffn_dim", "hidden_dim")
    if facts.intermediate_size is None and facts.hidden_size is not None:
        facts.intermediate_size = 4 * facts.hidden_size
    heads, key_values = first("num_attention_heads", "n_head"), first("num_key_value_heads")
    facts.key_value_share = key_values / heads if heads and key_values else 1.0
    architectures = _architectures(config)
    facts.architecture = architectures[0] if architectures else config.get("model_type")
    facts.dtype = DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.").upper())
    tied = config.get("tie_word_embeddings")
    facts.tied = tied if isinstance(tied, bool) else None


def _estimate_parameters(facts: ModelFacts) -> int | None:
    """Estimate the weights of a Llama-like model: embedding, attention, gated MLP, norms; experts are not counted."""
    if not (facts.hidden_size and facts.layers and facts.vocab_size and facts.intermediate_size):
        return None
    width = facts.hidden_size
    attention = 2 * width * width * (1 + facts.key_value_share)
    layer = attention + 3 * width * facts.intermediate_size + 2 * width
    embeddings = facts.vocab_size * width * (1 if facts.tied else 2)
    return int(embeddings + facts.layers * layer + width)


def _has_chat_template(path: Path) -> bool:
    if (path / "chat_template.jinja").is_file() or (path / "chat_template.json").is_file():
        return True
    return bool(read_json(path / "tokenizer_config.json").get("chat_template"))


def _architectures(config: dict) -> list[str]:
    """Return the class names that a config lists, whatever its type."""
    listed = config.get("architectures")
    return [str(name) for name in listed] if isinstance(listed, list) else []


def _kind_faults(path: Path, config: dict, wanted: ModelKind) -> Iterator[str]:
    names = _architectures(config)
    if config.get("is_encoder_decoder"):
        yield (
            f"model.path={path} is an encoder-decoder ({', '.join(names) or config.get('model_type')}): name "
            + ("a causal language model" if wanted is ModelKind.causal else "a model with an encoder alone")
        )
    elif wanted is ModelKind.causal and names and not any(name.endswith(CAUSAL) for name in names):
        yield (
            f"model.path={path} is not a causal language model (architectures: {', '.join(names)}): name one "
            "whose class ends with ForCausalLM"
        )
    if "quantization_config" in config:
        method = (
            config["quantization_config"].get("quant_method", "unknown")
            if isinstance(config["quantization_config"], dict)
            else "unknown"
        )
        yield (
            f"model.path={path} holds quantised weights ({method}), which cannot be trained: name the "
            "unquantised model (adapter=qlora quantises it itself)"
        )


def code_sha256(path: Path) -> str:
    """Return one checksum over the names and contents of all Python files below a folder.

    Args:
        path: A model folder.
    """
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.py")):
        digest.update(
            f"{file.relative_to(path).as_posix()}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode()
        )
    return digest.hexdigest()


def _no_code_fault(given: str) -> str:
    return f"model.vetted_code_sha256={given} has no effect: the model needs no code of its own; remove it"


def _code_faults(path: Path, config: dict, model: Model, facts: ModelFacts) -> Iterator[str]:
    """Yield why a model's own code may not run.

    Code is requested by `auto_map` in a config; transformers' own class is used instead, and no code runs, where it has
    one for the model type and nothing was vetted.
    """
    vetted = model.vetted_code_sha256
    asked = [
        where for name in ("config.json", "tokenizer_config.json") if (where := read_json(path / name)).get("auto_map")
    ]
    if not asked:
        if vetted is not None:
            yield _no_code_fault(vetted)
        return
    if "--" in json.dumps([where["auto_map"] for where in asked]):
        yield (
            f"model.path={path} loads code from another repository (auto_map in its config), which cannot be "
            "vetted: copy the code into the folder"
        )
        return
    facts.code_sha256 = code_sha256(path)
    if vetted == facts.code_sha256:
        return
    if vetted is not None:
        yield (
            f"model.vetted_code_sha256={vetted} is not the code in {path}: read that code, then write "
            f"model.vetted_code_sha256={facts.code_sha256}"
        )
    elif not _is_native(config.get("model_type")):
        yield (
            f"model.path={path} needs its own Python code, which does not run before you have reviewed it: read it, "
            f"then write model.vetted_code_sha256={facts.code_sha256}"
        )


def _is_native(model_type: object) -> bool:
    """Whether the installed transformers has the model type itself, found without importing it."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None or not isinstance(model_type, str) or not model_type.isidentifier():
        return False
    return (Path(spec.origin).parent / "models" / model_type).is_dir()
