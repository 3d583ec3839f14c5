"""Texts with marked spans: read from labelled words or from character positions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aitrain.config.data import Tagged
from aitrain.data.faults import RecordFaults
from aitrain.data.records import read_records
from aitrain.data.source import Source
from aitrain.errors import DataError

OUTSIDE = "O"
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class TaggedText:
    """One text, the positions of its words, and a label for each."""

    text: str
    words: list[tuple[int, int]]
    labels: list[str]
    where: str


def read_tagged(
    source: Source, data: Tagged, with_labels: bool = True, known: Sequence[str] | None = None
) -> list[TaggedText]:
    """Read the records of a file; all faults are reported together.

    Args:
        source: The data files.
        data: Which fields hold what.
        with_labels: Whether labels must be there; without, every word is `O`.
        known: Kinds of entities that training has; None = this is the training file.

    Raises:
        DataError: Records lack a field, entities overlap or lie outside the text, or a label is not known; each with
            its line.
    """
    found, faults = [], RecordFaults()
    for where, record in read_records(source):
        try:
            if isinstance(record, DataError):
                raise record
            one = _read(record, data, where, with_labels)
            strange = sorted({label[2:] for label in one.labels if label != OUTSIDE} - set(known or ()))
            if known is not None and strange:
                raise DataError(
                    f"{where}: label {strange[0]!r} is not among those of the training data "
                    f"({', '.join(map(repr, known))}): fix it, or add examples of it to data.path"
                )
            found.append(one)
        except DataError as fault:
            faults.add(fault)
    nothing = known is None and with_labels and not any(label != OUTSIDE for one in found for label in one.labels)
    faults.refuse(*([f"{source.name}: no text has a marked entity: there is nothing to learn"] if nothing else []))
    return found


def _read(record: dict[str, Any], data: Tagged, where: str, with_labels: bool) -> TaggedText:
    if isinstance(record.get(data.words_field), list):
        return _read_words(record, data, where, with_labels)
    text = record.get(data.text_field)
    if not isinstance(text, str):
        keys = ", ".join(map(repr, record))
        raise DataError(
            f"{where}: neither a list {data.words_field!r} nor a text {data.text_field!r} (keys here: {keys}): write "
            "data.words_field=KEY or data.text_field=KEY"
        )
    if not text.strip():
        raise DataError(f"{where}: {data.text_field!r} is empty: write a text, or remove the record")
    if with_labels and not isinstance(record.get(data.entities_field), list):
        raise DataError(
            f"{where}: no list {data.entities_field!r}: write [] where nothing is marked, or data.entities_field=KEY"
        )
    spans = _spans_of(record[data.entities_field], text, data, where) if with_labels else []
    return with_spans(text, spans, where)


def _read_words(record: dict[str, Any], data: Tagged, where: str, with_labels: bool) -> TaggedText:
    words = [str(word) for word in record[data.words_field]]
    labels = record.get(data.labels_field) if with_labels else [OUTSIDE] * len(words)
    if not isinstance(labels, list) or len(labels) != len(words):
        count = "no list" if not isinstance(labels, list) else f"{len(labels)} entries"
        raise DataError(f"{where}: {data.labels_field!r} has {count} for {len(words)} words: give one label per word")
    if not words or not all(word.strip() for word in words):
        raise DataError(f"{where}: {data.words_field!r} is empty, or has an empty word: remove it")
    before = OUTSIDE
    for number, label in enumerate(map(str, labels)):
        if label != OUTSIDE and not re.fullmatch(r"[BI]-.+", label):
            raise DataError(f"{where}: label {label!r} of word {number} is not O, B-NAME or I-NAME")
        if label.startswith("I-") and before[2:] != label[2:]:
            raise DataError(
                f"{where}: word {number} has {label!r} after {before!r}: an entity begins with B-{label[2:]}"
            )
        before = label
    places, at = [], 0
    for word in words:
        places.append((at, at + len(word)))
        at += len(word) + 1
    return TaggedText(" ".join(words), places, [str(label) for label in labels], where)


def _spans_of(entities: list[Any], text: str, data: Tagged, where: str) -> list[tuple[int, int, str]]:
    spans = []
    for entity in entities:
        try:
            start, end, label = int(entity["start"]), int(entity["end"]), str(entity["label"])
        except (TypeError, KeyError, ValueError):
            raise DataError(
                f"{where}: {entity!r} in {data.entities_field!r} is not an entity: write "
                '{"start": 0, "end": 4, "label": "PERSON"}'
            ) from None
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            raise DataError(f"{where}: entity {start} to {end} is not inside the text of {len(text)} characters")
        spans.append((start, end, label))
    spans.sort()
    for one, other in zip(spans, spans[1:], strict=False):
        if other[0] < one[1]:
            raise DataError(
                f"{where}: entities overlap: {text[one[0] : one[1]]!r} ({one[2]}) and {text[other[0] : other[1]]!r} "
                f"({other[2]}): keep one of them"
            )
    return spans


def with_spans(text: str, spans: Sequence[tuple[int, int, str]], where: str) -> TaggedText:
    """Cut a text into words, at the ends of entities too, and give each word its label.

    Args:
        text: The text.
        spans: Start, end and label of each entity, in order, without overlap.
        where: Place of the record.
    """
    cuts = {place for start, end, _ in spans for place in (start, end)}
    words, labels = [], []
    for match in _WORD.finditer(text):
        edges = [match.start(), *sorted(cut for cut in cuts if match.start() < cut < match.end()), match.end()]
        for start, end in zip(edges, edges[1:], strict=False):
            inside = next((span for span in spans if span[0] <= start < span[1]), None)
            words.append((start, end))
            if inside is None:
                labels.append(OUTSIDE)
            else:
                first = not any(span_word >= inside[0] for span_word, _ in words[:-1])
                labels.append(f"{'B' if first else 'I'}-{inside[2]}")
    return TaggedText(text, words, labels, where)


def spans_in(labels: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield first word, index after the last word, and kind of each entity; an `I-` that follows nothing begins one.

    Args:
        labels: One per word.

    Source: the rule of the CoNLL evaluation script (Tjong Kim Sang and De Meulder 2003).
    """
    start, kind = 0, ""
    for at, label in enumerate([*labels, OUTSIDE]):
        goes_on = label.startswith("I-") and label[2:] == kind
        if kind and not goes_on:
            yield start, at, kind
            kind = ""
        if label != OUTSIDE and not goes_on:
            start, kind = at, label[2:]
