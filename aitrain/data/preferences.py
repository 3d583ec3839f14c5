"""Pairs of answers to one prompt: read, written with the chat template, tokenised, the answer's tokens marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aitrain.config.data import OnTooLong, Preferences, RecordFormat
from aitrain.data.chat_template import ChatTemplate
from aitrain.data.conversation import to_conversation
from aitrain.data.faults import RecordFaults
from aitrain.data.masking import Encoded, encode
from aitrain.data.records import read_records
from aitrain.data.report import Places
from aitrain.data.source import Source
from aitrain.errors import DataError

SIDES = ("chosen", "rejected")


@dataclass
class PreferredAnswers:
    """Contents of one file, one entry per record."""

    chosen: list[Encoded] = field(default_factory=list)
    rejected: list[Encoded] = field(default_factory=list)
    dropped: Places = field(default_factory=Places)


def read_preferences(source: Source, data: Preferences, tokenizer: Any, system_prompt: str | None) -> PreferredAnswers:
    """Read the records of a file; all faults are reported together.

    Args:
        source: The data files.
        data: How long an answer may be, and what to do with a longer one.
        tokenizer: A fast transformers tokenizer with a chat template.
        system_prompt: System message for a conversation that has none, or None.

    Raises:
        DataError: Records lack an answer, have the same one twice, or one that is too long; each with its line.
    """
    faults, found, template = RecordFaults(), PreferredAnswers(), ChatTemplate(tokenizer)
    places: list[str] = []
    written: dict[str, list[Any]] = {side: [] for side in SIDES}
    for where, record in read_records(source):
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
    faults.refuse(*_long_faults(long, longest, len(places), data))
    return found


def _long_faults(long: Places, longest: int, records: int, data: Preferences) -> list[str]:
    if not long.count:
        return []
    return [
        f"{long.count} of {records} records have an answer longer than data.sequence_tokens={data.sequence_tokens} "
        f"({long}): write data.sequence_tokens={longest} or data.too_long=drop"
    ]


@dataclass
class JudgedAnswers:
    """Contents of one file, one entry per judged answer."""

    answers: list[Encoded] = field(default_factory=list)
    others: list[Encoded] = field(default_factory=list)
    """The prompt of each with the answer of another record: to measure how probable an unjudged answer is."""

    good: list[bool] = field(default_factory=list)
    dropped: Places = field(default_factory=Places)


def read_judged(source: Source, data: Preferences, tokenizer: Any, system_prompt: str | None) -> JudgedAnswers:
    """Read single answers labelled good or bad; a pair of answers gives one of each.

    Args:
        source: The data files.
        data: How long an answer may be, and what to do with a longer one.
        tokenizer: A fast transformers tokenizer with a chat template.
        system_prompt: System message for a conversation that has none, or None.

    Raises:
        DataError: Records lack an answer or a judgement, or an answer is too long; each with its line.
    """
    faults, found, template = RecordFaults(), JudgedAnswers(), ChatTemplate(tokenizer)
    judged: list[tuple[str, dict[str, Any], Any, bool]] = []
    for where, record in read_records(source):
        try:
            if isinstance(record, DataError):
                raise record
            judged += [(where, record, answer, good) for answer, good in _judgements(record, where)]
        except DataError as fault:
            faults.add(fault)
    faults.refuse(*_one_sided(judged, source.name))
    written: dict[str, list[Any]] = {"answers": [], "others": []}
    for at, (where, record, answer, _) in enumerate(judged):
        following = (judged[(at + step) % len(judged)][2] for step in range(1, len(judged)))
        other = next((text for text in following if text != answer), answer)
        for name, text in (("answers", answer), ("others", other)):
            written[name].append((where, _conversation(record, text, template, where, system_prompt)))
    answers, others = (encode(tokenizer, part) for part in written.values())
    long, longest = Places(), 0
    for (where, _, _, good), answer, other in zip(judged, answers, others, strict=True):
        try:
            both = [_usable(each, where) for each in (answer, other)]
        except DataError as fault:
            faults.add(fault)
            continue
        longest = max(longest, len(both[0].ids))
        if len(both[0].ids) > data.sequence_tokens:
            (found.dropped if data.too_long is OnTooLong.drop else long).add(where)
            continue
        found.answers.append(both[0])
        found.others.append(_cut(both[1], data.sequence_tokens))
        found.good.append(good)
    faults.refuse(*_long_faults(long, longest, len(judged), data))
    return found


def _judgements(record: dict[str, Any], where: str) -> list[tuple[Any, bool]]:
    if "chosen" in record or "rejected" in record:
        _refuse_missing(record, ("prompt", *SIDES), where)
        return [(record["chosen"], True), (record["rejected"], False)]
    _refuse_missing(record, ("prompt", "completion"), where)
    word = str(record.get("label")).strip().lower()
    if word not in ("true", "false", "1", "0"):
        raise DataError(
            f"{where}: 'label' is {record.get('label')!r}: write true for a good answer, false for a bad one"
        )
    return [(record["completion"], word in ("true", "1"))]


def _one_sided(judged: Sequence[tuple[str, Any, Any, bool]], file: str) -> list[str]:
    kinds = {good for *_, good in judged}
    if len(kinds) != 1:
        return []
    return [f"{file}: every answer is {'good' if kinds == {True} else 'bad'}: give answers of both kinds"]


def _cut(encoded: Encoded, tokens: int) -> Encoded:
    """Cut an answer that was paired with another prompt; at least one token is left."""
    if len(encoded.ids) <= tokens:
        return encoded
    begin = list(encoded.trained).index(True)
    first = max(0, min(begin - 1, len(encoded.ids) - tokens)) if begin >= tokens else 0
    return replace(encoded, ids=encoded.ids[first : first + tokens], trained=encoded.trained[first : first + tokens])


def _rendered(record: dict[str, Any], template: ChatTemplate, where: str, system_prompt: str | None) -> Sequence[Any]:
    _refuse_missing(record, ("prompt", *SIDES), where)
    if record["chosen"] == record["rejected"]:
        raise DataError(f"{where}: 'chosen' and 'rejected' are the same: nothing can be learned from it, so remove it")
    return [_conversation(record, record[side], template, where, system_prompt) for side in SIDES]


def _refuse_missing(record: dict[str, Any], keys: Sequence[str], where: str) -> None:
    missing = [key for key in keys if record.get(key) in (None, "", [])]
    if missing:
        here = ", ".join(map(repr, record))
        example = ", ".join(f'"{key}": "..."' for key in keys)
        raise DataError(f"{where}: no {missing[0]!r} (keys here: {here}): a record is written as {{{example}}}")


def _conversation(
    record: dict[str, Any], answer: Any, template: ChatTemplate, where: str, system_prompt: str | None
) -> Any:
    other = {key: value for key, value in record.items() if key in ("system", "history", "tools")}
    given = {"prompt": record["prompt"], "completion": answer, **other}
    return template.render(to_conversation(given, RecordFormat.prompt_completion, where, system_prompt), where)


def _usable(encoded: Encoded | DataError, where: str) -> Encoded:
    if isinstance(encoded, DataError):
        raise encoded
    if not any(encoded.trained):
        raise DataError(f"{where}: one of the two answers is empty")
    return encoded
