"""Pairs of answers to one prompt: read, written with the chat template, tokenised, the answer's tokens marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aitrain.config.data import OnTooLong, Preferences, RecordFormat
from aitrain.data.chat_template import ChatTemplate
from aitrain.data.conversation import to_conversation
from aitrain.data.faults import RecordFaults
from aitrain.data.masking import Encoded, encode
from aitrain.data.records import read_records
from aitrain.data.report import Places
from aitrain.errors import DataError

SIDES = ("chosen", "rejected")


@dataclass
class PreferredAnswers:
    """What one file holds, one entry per record."""

    chosen: list[Encoded] = field(default_factory=list)
    rejected: list[Encoded] = field(default_factory=list)
    dropped: Places = field(default_factory=Places)


def read_preferences(path: Path, data: Preferences, tokenizer: Any, system_prompt: str | None) -> PreferredAnswers:
    """Read the records of a file; what is wrong with any of them is told at once.

    Args:
        path: A data file.
        data: How long an answer may be, and what happens with a longer one.
        tokenizer: A fast transformers tokenizer with a chat template.
        system_prompt: System message for a conversation that has none, or None.

    Raises:
        DataError: Records lack an answer, have the same one twice, or one that is too long; each with its line.
    """
    faults, found, template = RecordFaults(), PreferredAnswers(), ChatTemplate(tokenizer)
    places: list[str] = []
    written: dict[str, list[Any]] = {side: [] for side in SIDES}
    for where, record in read_records(path):
        try:
            if isinstance(record, DataError):
                raise record
            pair = _rendered(record, template, where, system_prompt)
        except DataError as fault:
            faults.add(fault)
            continue
        places.append(where)
        for side, one in zip(SIDES, pair, strict=True):
            written[side].append((where, one))
    sides = [encode(tokenizer, written[side]) for side in SIDES]
    long, longest = Places(), 0
    for where, chosen, rejected in zip(places, *sides, strict=True):
        try:
            both = [_usable(each, where) for each in (chosen, rejected)]
        except DataError as fault:
            faults.add(fault)
            continue
        tokens = max(len(each.ids) for each in both)
        longest = max(longest, tokens)
        if tokens > data.sequence_tokens:
            (found.dropped if data.too_long is OnTooLong.drop else long).add(where)
            continue
        found.chosen.append(both[0])
        found.rejected.append(both[1])
    others = []
    if long.count:
        others.append(
            f"{long.count} of {len(places)} records have an answer longer than data.sequence_tokens="
            f"{data.sequence_tokens} ({long}): write data.sequence_tokens={longest} or data.too_long=drop"
        )
    faults.refuse(*others)
    return found


def _rendered(record: dict[str, Any], template: ChatTemplate, where: str, system_prompt: str | None) -> Sequence[Any]:
    missing = [key for key in ("prompt", *SIDES) if record.get(key) in (None, "", [])]
    if missing:
        keys = ", ".join(map(repr, record))
        raise DataError(
            f"{where}: no {missing[0]!r} (keys here: {keys}): a record is written as "
            '{"prompt": "...", "chosen": "...", "rejected": "..."}'
        )
    if record["chosen"] == record["rejected"]:
        raise DataError(f"{where}: 'chosen' and 'rejected' are the same: nothing can be learned from it, remove it")
    other = {key: value for key, value in record.items() if key in ("system", "history", "tools")}
    return [
        template.render(
            to_conversation(
                {"prompt": record["prompt"], "completion": record[side], **other},
                RecordFormat.prompt_completion,
                where,
                system_prompt,
            ),
            where,
        )
        for side in SIDES
    ]


def _usable(encoded: Encoded | DataError, where: str) -> Encoded:
    if isinstance(encoded, DataError):
        raise encoded
    if not any(encoded.trained):
        raise DataError(f"{where}: the assistant says nothing in one of the two answers")
    return encoded
