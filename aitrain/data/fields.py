"""Meaning of the fields of a record: training marks, fields that are read, and fields that only other tools use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aitrain.errors import DataError

TRAIN = "train"
"""Key of an assistant's message: `false` excludes it from the loss."""

MARKS = (TRAIN, "training", "weight", "loss")
"""Names of a message's training mark in other tools, with one meaning here: true or 1 is trained, false or 0 is not."""

UNREAD_MARKS = ("train_detail", "training_detail", "loss_scale", "loss_mask", "mask", "masked", "trainable")
"""Marks of other tools with more than two values, or with the opposite meaning."""

_ELSEWHERE = frozenset(
    {
        *("history", "system", "system_prompt", "system_message", "context"),
        *("chosen", "rejected", "rejected_response", "rejected_messages", "kto_tag"),
        *("image", "images", "video", "videos", "audio", "audios", "documents", "objects"),
        *("functions", "function_call", "chat_template_kwargs"),
        *("reasoning", "reasoning_content", "thinking", "thought", "thoughts"),
        *("input_ids", "labels", "completion_mask", "assistant_masks"),
    }
)
"""Fields that LLaMA-Factory, TRL, Axolotl, ms-swift or OpenAI's format train on, or show to the model."""


def is_given(value: Any) -> bool:
    """Return whether a field has a value; in Parquet and CSV every record has every field.

    Args:
        value: The field's value.
    """
    return value is not None and not (isinstance(value, (str, list, dict)) and not value) and value not in ("[]", "{}")


def training_mark(turn: dict[str, Any], role: str, place: str) -> bool | None:
    """Return the training mark of a message; None if it has none.

    Args:
        turn: A message or a whole record.
        role: Whose turn it is.
        place: Its place, for messages.

    Raises:
        DataError: The mark is not understood, contradicts another one, or asks to train what nobody learns.
    """
    for name in UNREAD_MARKS:
        if is_given(turn.get(name)):
            raise DataError(
                f'{place} has {name!r}, a training mark that is not supported: write "{TRAIN}": true or false on the '
                f"assistant's messages, or add data.ignore_fields=[{name}]"
            )
    said: dict[str, bool] = {}
    for name in MARKS:
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise DataError(
                f"{place} has {name!r}: {value!r}, a training mark that is neither true nor false: write one of them, "
                f"or add data.ignore_fields=[{name}]"
            )
        said[name] = bool(value)
    if len(set(said.values())) > 1:
        told = ", ".join(f"{name!r}: {str(value).lower()}" for name, value in said.items())
        raise DataError(f"{place} has training marks that contradict each other ({told}): keep one")
    mark = next(iter(said.values()), None)
    if mark and role != "assistant":
        raise DataError(
            f"{place} marks the {role}'s message as trained, but only the assistant's are: "
            f"remove {next(iter(said))!r} there, or set it to false"
        )
    return mark


def unused_fields(record: dict[str, Any], used: Iterable[str], ignored: Iterable[str], where: str) -> list[str]:
    """Return the unused fields of a record.

    Args:
        record: The record.
        used: Fields that are read.
        ignored: Fields that the user ignores on purpose.
        where: Place of the record, for messages.

    Raises:
        DataError: Another tool would train on one of them.
    """
    unused = [name for name, value in record.items() if name not in used and is_given(value)]
    foreign = [name for name in unused if _is_foreign(name, record[name]) and name not in ignored]
    if foreign:
        names = ", ".join(map(repr, foreign))
        raise DataError(
            f"{where}: {names} would not be used in records of this shape, but other tools train on "
            f"{'fields with these names' if len(foreign) > 1 else 'a field with this name'}: move it into the "
            f"conversation, or add data.ignore_fields=[{','.join(foreign)}] to train without it"
        )
    return unused


def _is_foreign(name: str, value: Any) -> bool:
    """Whether other tools train on a field; `label` only as the label of KTO, otherwise it is metadata."""
    return name in _ELSEWHERE or (name == "label" and isinstance(value, bool))
