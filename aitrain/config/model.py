"""Keys of the group `model`: which model, where it comes from, and how it is initialised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class ModelKind(Enum):
    """The kind of model that a task starts from."""

    causal = "causal"
    """A language model that predicts the next token."""

    encoder = "encoder"
    """A text encoder such as BERT, or any other model that a task head can be added to."""

    image = "image"
    """An image encoder such as ViT, DINOv2, ConvNeXt or ResNet."""


class ModelInit(Enum):
    """How the weights are initialised."""

    pretrained = "pretrained"
    random = "random"


class Attention(Enum):
    """Attention implementation inside the model."""

    eager = "eager"
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"


class FusedOps(Enum):
    """Where aitrain's fused ops replace parts of the model."""

    auto = "auto"
    on = "on"
    off = "off"

    def holds(self, accelerator: str) -> bool:
        """Return whether they are used on this accelerator, `cpu` or `cuda`."""
        return self is FusedOps.on or (self is FusedOps.auto and accelerator == "cuda")


@dataclass
class Model:
    """A Hugging Face model."""

    path: str | None = MISSING
    """A Hugging Face folder, a `.gguf` file, `asset:NAME` (see `aitrain fetch`), or a hub name (needs
    `model.allow_network=true`); `null` if the task brings its own model."""

    init: ModelInit = ModelInit.pretrained
    """`pretrained` loads the weights; `random` takes only the folder's config and tokenizer and starts from `seed`."""

    allow_network: bool = False
    """Whether a hub name may be downloaded. If false, no connection is opened."""

    revision: str | None = None
    """Commit, tag or branch of a hub name; `null` = its main branch. Not used for local paths."""

    attention: Attention = Attention.sdpa
    """Attention implementation: `sdpa` works with most models, `eager` with all; `flash_attention_2` needs a GPU and
    its package."""

    fused_ops: FusedOps = FusedOps.auto
    """Whether aitrain's fused ops compute the loss, the norms and the gated activations; `auto` = on a GPU. The run
    reports what was replaced, and first compares the model with its unfused version on a tiny batch."""

    chat_template: str | None = None
    """Chat template, for models that have none: `chatml`, `llama3`, `mistral`, `gemma`, `qwen3`, `zephyr` or `phi3`, or
    the path of a Jinja file; `null` = the model's own. Tokens that the tokenizer lacks are added and trained.
    """

    vetted_code_sha256: str | None = None
    """Checksum of the Python code inside the model folder, as `aitrain check` prints it. Such code runs only if this
    matches; `null` = never."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        if self.path not in (MISSING, None) and not str(self.path).strip():
            yield "model.path='' is empty: write a folder, a .gguf file, asset:NAME or a hub name"
