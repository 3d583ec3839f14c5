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
_BY_COMMA = re.compile(r"[+-]?(\d{1,3}([.\s]\d{3})+|\d+)(,\d+)?([eE][+-]?\d+)?")


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


def number_by_comma(text: str) -> float:
    """Return a number that is written with a decimal comma; points and blanks separate thousands.

    Args:
        text: A cell.

    Raises:
        ValueError: It is not such a number, for instance 1.5.
    """
    if not _BY_COMMA.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is not a number with a decimal comma")
    return float(re.sub(r"[.\s]", "", text).replace(",", "."))


def has_comma(value: Any) -> bool:
    """Whether a cell is a text that is a number with a decimal comma.

    Args:
        value: The cell.
    """
    return isinstance(value, str) and "," in value and _BY_COMMA.fullmatch(value.strip()) is not None


def proposed_reading(rows: Sequence[Mapping[str, Any]], keys: Series, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return keys of the group `data` with which a table seems right to read.

    Args:
        rows: Records of the table, at least one, with columns named as in the file.
        keys: What the recipe and the user say; what they say is not proposed.
        columns: Names that aitrain reads -> columns, as far as they are proposed; those of `keys` count before them.
    """
    named = keys.columns or columns
    time = named.get(keys.time_field, keys.time_field)
    held = {column: [row[column] for row in rows if column in row] for column in rows[0]}
    times = held.pop(time, [])
    for name in keys.known:
        held.pop(named.get(name, name), None)
    texts = [column for column, values in held.items() if not all(map(_is_number, values))]
    numbers = [column for column in held if column not in texts]
    found: dict[str, Any] = {}
    if not keys.columns:
        value = numbers[0] if len(numbers) == 1 else proposed(numbers, ["value"]).get("value")
        more = {keys.value_field: value, keys.series_field: texts[0]} if len(texts) == 1 and value else {}
        new = {name: column for name, column in {**columns, **more}.items() if name != column}
        found |= {"columns": new} if new else {}
    if keys.time_format is None and not all(map(_is_iso, times)) and (pattern := found_format(times)) is not None:
        found["time_format"] = pattern
    if any(has_comma(value) for column in numbers for value in held[column]):
        found["decimal"] = "comma"
    return found


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
