"""Small real tokenizers for the tests of the data room."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

ASSETS = Path(__file__).parents[1] / "assets" / "chat_templates"
TEXT = """The user asks and the assistant answers. What is the capital of France? The capital of France is Paris.
Hello! How are you? I am well, thank you. You are a helpful assistant. Be brief. Yes. No. One two three four five.
system user assistant model Grüße aus Köln, 你好世界, naïve café. A long answer\n\nwith two paragraphs.\n"""


@cache
def _trained(family: str, trim_offsets: bool) -> tuple[str, str]:
    special = json.loads((ASSETS / f"{family}.json").read_text())
    named = [value for key, value in special.items() if isinstance(value, str)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(dict.fromkeys(named + special.get("additional_special_tokens", []))),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.add_tokens(special.get("added_tokens", []))
    return tokenizer.to_str(), json.dumps(special)


@pytest.fixture(scope="session")
def small_tokenizer() -> Callable[..., Any]:
    """A byte-level BPE tokenizer of about 500 tokens with a family's template and special tokens."""

    def make(family: str, trim_offsets: bool = False, template: str | None = None) -> Any:
        serialised, special = _trained(family, trim_offsets)
        names: dict[str, Any] = json.loads(special)
        names.pop("added_tokens", None)
        names["extra_special_tokens"] = names.pop("additional_special_tokens", [])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(serialised), **names)
        tokenizer.chat_template = template if template is not None else (ASSETS / f"{family}.jinja").read_text()
        return tokenizer

    return make
