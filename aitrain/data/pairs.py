"""Questions with texts that answer them, and hard negatives: read and checked together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aitrain.config.data import Pairs
from aitrain.data.column_names import missing_column
from aitrain.data.faults import RecordFaults
from aitrain.data.records import read_records
from aitrain.data.source import Source
from aitrain.errors import DataError


@dataclass
class PairedTexts:
    """Contents of one file, one entry per record."""

    queries: list[str] = field(default_factory=list)
    positives: list[str] = field(default_factory=list)
    negatives: list[list[str]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)


def read_pairs(source: Source, data: Pairs) -> PairedTexts:
    """Read the records of a file; all faults are reported together.

    Args:
        source: The data files.
        data: Which fields hold what.

    Raises:
        DataError: Records lack a question or its text, or give the same text as right and as wrong; each with its line.
    """
    found, faults = PairedTexts(), RecordFaults()
    for where, record in read_records(source):
        try:
            if isinstance(record, DataError):
                raise record
            query = _text(record, data.query_field, where, "data.query_field")
            positive = _text(record, data.positive_field, where, "data.positive_field")
            given = record.get(data.negatives_field)
            negatives = [given] if isinstance(given, str) and given else given or []
            if not isinstance(negatives, list) or not all(isinstance(each, str) and each.strip() for each in negatives):
                raise DataError(f"{where}: {data.negatives_field!r} must be a text or a list of texts")
            if positive in negatives:
                raise DataError(f"{where}: the same text is in {data.positive_field!r} and {data.negatives_field!r}")
        except DataError as fault:
            faults.add(fault)
            continue
        found.queries.append(query)
        found.positives.append(positive)
        found.negatives.append(negatives)
        found.places.append(where)
    few = len(set(found.positives)) < 2 and not faults.count
    faults.refuse(*([f"{source.name}: all records have the same text: there is nothing to learn"] if few else []))
    return found


def _text(record: dict[str, Any], name: str, where: str, key: str) -> str:
    if name not in record:
        raise missing_column(record, name, where, key)
    value = record[name]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name!r} is {value!r:.40}, not a text: write one, or remove the record")
    return value


def text_mark(text: str) -> int:
    """Return a hash of a text, from 0 to 2^62, to find equal texts.

    Args:
        text: Any text.
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 2


def nearest_by_words(queries: list[np.ndarray[Any, Any]], texts: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Return the similarity of each question to each text by their tokens: cosine of TF-IDF.

    Args:
        queries: Token ids of Q questions.
        texts: Token ids of N texts.

    Returns:
        float64 `(Q, N)`.
    """
    size = 1 + max(int(ids.max()) for ids in [*queries, *texts] if len(ids))
    counts = [np.stack([np.bincount(ids, minlength=size) for ids in part]).astype(float) for part in (queries, texts)]
    weight = np.log((1 + len(texts)) / (1 + (counts[1] > 0).sum(0))) + 1
    vectors = [part * weight for part in counts]
    normed = [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in vectors]
    product: np.ndarray[Any, Any] = normed[0] @ normed[1].T
    return product
