"""Masks the loss: converts a conversation to token ids and marks those of the assistant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aitrain.data.chat_template import Rendered, Span
from aitrain.errors import DataError, ModelError


@dataclass(frozen=True)
class Encoded:
    """One tokenised sample."""

    ids: list[int]
    trained: list[bool]
    """Whether the loss is taken on a token; never on the first, which nothing predicts."""


def encode(
    tokenizer: Any, batch: Sequence[tuple[str, Rendered]], most_characters: int | None = None
) -> list[Encoded | DataError]:
    """Tokenise many conversations at once, for which a fast tokenizer uses all cores.

    The complete text is tokenised once; a token is marked when it overlaps a trained span. So the model sees the
    same tokens as at inference, whatever merges the tokenizer makes.

    Args:
        tokenizer: A fast transformers tokenizer.
        batch: Place of each conversation, and what its chat template wrote.
        most_characters: Characters of a conversation that are tokenised; `None` = all.

    Returns:
        One encoded sample per conversation, in order, or why it cannot be one: a turn whose end the tokenizer does not
        read as one token.

    Raises:
        ModelError: The tokenizer is a slow one.
    """
    require_fast(tokenizer)
    if not batch:
        return []
    output = tokenizer(
        [one.text[:most_characters] for _, one in batch],
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    encoded: list[Encoded | DataError] = []
    for (where, one), ids, offsets in zip(batch, output["input_ids"], output["offset_mapping"], strict=True):
        cut = most_characters is not None and len(one.text) > most_characters
        try:
            encoded.append(_mark(tokenizer, one, ids, offsets, where, cut))
        except DataError as fault:
            encoded.append(fault)
    return encoded


def require_fast(tokenizer: Any) -> None:
    """Refuse a tokenizer that does not map tokens to characters.

    Args:
        tokenizer: A transformers tokenizer.

    Raises:
        ModelError: It is a slow one.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which gives no character positions: "
            "use a model folder with tokenizer.json"
        )


def _mark(
    tokenizer: Any, rendered: Rendered, ids: list[int], offsets: list[tuple[int, int]], where: str, cut: bool
) -> Encoded:
    trained = [False] * len(ids)
    token = 0
    for span in rendered.spans:
        while token < len(ids) and offsets[token][1] <= span.begin:
            token += 1
        last = -1
        # Some byte-level tokenizers leave blanks out of their offsets, so a token of blanks seems to cover nothing: it
        # stands at its own end, which lies inside the span, for every span ends with the end-of-turn token.
        while token < len(ids) and offsets[token][0] < span.end:
            trained[token], last = True, token
            token += 1
        if cut and token == len(ids):
            break  # the end of this turn is after the kept part
        _check_end(tokenizer, ids[last] if last >= 0 else None, span, where)
    if trained:
        trained[0] = False
    return Encoded(ids, trained)


def _check_end(tokenizer: Any, last: int | None, span: Span, where: str) -> None:
    if last is None or last != tokenizer.convert_tokens_to_ids(span.end_token):
        raise DataError(
            f"{where}: the tokenizer does not read the end of turn {span.end_token!r} as one token, so the model would "
            "never learn to stop: write model.chat_template=FILE with a template that ends turns with one of its own"
        )
