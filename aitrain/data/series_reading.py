"""Finds how a table of series is written, to propose it: format of the times, decimal commas, and what columns hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import product
from typing import Any

from aitrain.config.data import Series
from aitrain.data.column_names import proposed

_DATES = ("%d.%m.%Y", "%d-%m-%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%y", "%d-%m-%y", "%d/%m/%y")
_HOURS = ("", " %H:%M", " %H:%M:%S", "T%H:%M", "T%H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
_COMMA = re.compile(r"[+-]?\d+(\.\d{3})*,\d+")


def found_format(values: Sequence[Any]) -> str | None:
    """Return the format of times as `data.time_format` takes it: the first usual one that fits all; None = none does.

    Where a day could be a month, the day comes first.

    Args:
        values: Times as they are in the file.
    """
    texts = [value.strip() for value in values if isinstance(value, str)]
    if not texts or len(texts) < len(values):
        return None
    return next((date + hour for date, hour in product(_DATES, _HOURS) if _fits(texts, date + hour)), None)


def _fits(texts: Sequence[str], pattern: str) -> bool:
    try:
        for text in texts:
            datetime.strptime(text, pattern)
    except ValueError:
        return False
    return True


def has_comma(value: Any) -> bool:
    """Whether a text is a number with a decimal comma.

    Args:
        value: A cell.
    """
    return isinstance(value, str) and _COMMA.fullmatch(value.strip()) is not None


def proposed_reading(rows: Sequence[Mapping[str, Any]], keys: Series) -> dict[str, Any]:
    """Return keys of the group `data` with which a table seems right to read.

    Args:
        rows: Records of the table, at least one, with columns named as in the file.
        keys: What the recipe and the user say; what it already reads is not proposed.
    """
    named = {**dict.fromkeys(keys.columns.values(), ""), **{column: name for name, column in keys.columns.items()}}
    held = {named.get(column, column): [row[column] for row in rows if column in row] for column in rows[0]}
    columns = {} if keys.columns else proposed(rows[0], [keys.time_field])
    time = columns.get(keys.time_field, keys.time_field)
    found: dict[str, Any] = {}
    if keys.time_format is None and not all(map(_is_iso, held.get(time, ()))):
        pattern = found_format(held.get(time, ()))
        found |= {} if pattern is None else {"time_format": pattern}
    others = {column: values for column, values in held.items() if column not in (time, *keys.known)}
    texts = [column for column, values in others.items() if not all(map(_is_number, values))]
    numbers = [column for column in others if column not in texts]
    value = numbers[0] if len(numbers) == 1 else proposed(numbers, ["value"]).get("value")
    if not keys.columns and len(texts) == 1 and value is not None:
        columns |= {keys.value_field: value, keys.series_field: texts[0]}
    if any(has_comma(value) for column in numbers for value in others[column]):
        found["decimal"] = "comma"
    columns = {name: column for name, column in columns.items() if name != column}
    return ({"columns": columns} if columns else {}) | found


def _is_iso(value: Any) -> bool:
    if not isinstance(value, str):
        return True
    try:
        datetime.fromisoformat(value.strip())
    except ValueError:
        return False
    return True


def _is_number(value: Any) -> bool:
    if value is None or not isinstance(value, str) or not value.strip() or has_comma(value):
        return True
    try:
        float(value)
    except ValueError:
        return False
    return True
