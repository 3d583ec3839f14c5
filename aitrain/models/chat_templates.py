"""Chat templates by name, for base models that have none, and the tokens that they need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).with_name("chat_templates")


@dataclass(frozen=True)
class NamedTemplate:
    """A chat template that a recipe names."""

    name: str
    """Value of `model.chat_template`."""

    tokens: tuple[str, ...]
    """Its special tokens, which a tokenizer must not split; the end-of-turn token first."""

    needs: tuple[str, ...] = ()
    """Named tokens that the tokenizer must have: `eos_token`, `bos_token`."""

    about: str = ""
    """Models that were trained with it."""

    @property
    def source(self) -> str:
        """The template, in Jinja."""
        return (_FOLDER / f"{self.name}.jinja").read_text(encoding="utf-8")


TEMPLATES = {
    template.name: template
    for template in (
        NamedTemplate("chatml", ("<|im_end|>", "<|im_start|>"), about="Qwen, SmolLM, Yi and many others; if in doubt"),
        NamedTemplate(
            "llama3",
            ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
            ("bos_token",),
            about="Llama 3 and its descendants",
        ),
        NamedTemplate("mistral", (), ("bos_token", "eos_token"), about="Mistral 7B v0.3, Mixtral"),
        NamedTemplate("gemma", ("<end_of_turn>", "<start_of_turn>"), ("bos_token",), about="Gemma 1 to 3"),
        NamedTemplate("qwen3", ("<|im_end|>", "<|im_start|>"), about="Qwen3: thoughts and tools"),
        NamedTemplate("zephyr", (), ("eos_token",), about="Zephyr, TinyLlama; adds no token, so it fits any tokenizer"),
        NamedTemplate(
            "phi3", ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"), ("eos_token",), about="Phi-3 and 3.5"
        ),
    )
}
"""Name -> template."""


def named(chat_template: str | None) -> NamedTemplate | None:
    """Return the template that a recipe names; None if it names a file, or nothing.

    Args:
        chat_template: Value of `model.chat_template`.
    """
    return TEMPLATES.get(chat_template or "")


def choice() -> str:
    """Return the templates that can be named, for messages."""
    return ", ".join(TEMPLATES)
