"""Series of values from tables, long or wide, on one grid of time; gaps are reported with file and line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from aitrain.config.data import DecimalMark, Layout, OnGap
from aitrain.config.data import Series as Keys
from aitrain.data.column_names import words
from aitrain.data.faults import CellError, RecordFaults
from aitrain.data.records import read_records
from aitrain.data.series_reading import found_format, has_comma, number_by_comma
from aitrain.data.source import Source
from aitrain.data.time_grid import Grid, found_grid, parsed
from aitrain.errors import DataError

_LOOKED_AT = 1000
"""Times that are looked at to find their format."""

FAR = 1_000_000
"""Steps between two rows above which a time is more likely a mistake than a gap."""

Row = tuple[datetime, float | None, tuple[float, ...], str]
"""Time, value (None = there is none), known columns, and place."""


@dataclass
class Series:
    """One series on its grid."""

    name: str
    first: datetime
    """Time of step 0."""

    values: npt.NDArray[np.float32]
    """`(T,)`; NaN where there is none."""

    known: npt.NDArray[np.float32]
    """Columns that are known in advance, `(T + F, K)`: for F steps after the last value, too."""

    missing: int = 0
    """Steps between the first and the last value that have none."""


@dataclass
class SeriesTable:
    """Contents of a table."""

    series: list[Series]
    grid: Grid
    rows: int
    empty: list[str]
    """Names of series without any value, which are skipped."""


@dataclass
class _Rows:
    """Rows of a table by series, as they are read."""

    keys: Keys
    rows: dict[str, list[Row]] = field(default_factory=dict)
    faults: RecordFaults = field(default_factory=RecordFaults)
    count: int = 0
    columns: list[str] = field(default_factory=list)
    """Columns of a wide table that are series."""

    odd_times: list[tuple[str, Any]] = field(default_factory=list)
    """Place and content of cells that hold no time in the format asked for."""

    def refuse(self) -> None:
        """Refuse the table if a row cannot be used.

        Raises:
            DataError: Every fault, with its line.
        """
        if self.odd_times:
            keys = self.keys
            how = "2025-03-31T14:00" if keys.time_format is None else keys.time_format
            pattern = found_format([value for _, value in self.odd_times[:_LOOKED_AT]])
            advice = "fix it, or write data.time_format, for instance data.time_format='%d-%m-%Y %H:%M'"
            advice = advice if pattern is None else f"write data.time_format={pattern!r}"
            for where, value in self.odd_times:
                say = f"{where}: {keys.time_field!r} is {value!r}, not a time like {how}: {advice}"
                self.faults.add(CellError(say, "time"))
            self.odd_times.clear()
        self.faults.refuse()


def read_series(source: Source, keys: Keys, grid: Grid | None = None) -> SeriesTable:
    """Read the series of a table; all faults are reported together.

    Args:
        source: The tables.
        keys: Which columns hold what, and whether steps may lack values.
        grid: The grid of the training data; None = this is the training data.

    Raises:
        DataError: Rows lack a time or hold no numbers, times stand twice or off the grid, or steps are missing and
            `data.gaps=refuse`; each with its line.
    """
    found = _Rows(keys)
    for where, record in read_records(source):
        found.count += 1
        try:
            if isinstance(record, DataError):
                raise record
            _take(found, record, where)
        except DataError as fault:
            found.faults.add(fault)
    found.refuse()
    for rows in found.rows.values():
        rows.sort(key=lambda row: row[0])
    if grid is None:
        try:
            grid = found_grid([[row[0] for row in rows] for rows in found.rows.values()])
        except ValueError:
            raise DataError(f"{source.name}: every series has one row: there is nothing to learn from") from None
        if grid == Grid(0):
            grid = Grid(1)  # every time appears twice, which is reported below
    series = [_on_grid(name, rows, grid, found) for name, rows in found.rows.items()]
    found.faults.refuse()
    kept = [one for one in series if one is not None]
    if not kept:
        raise DataError(f"{source.name}: no series has a value")
    empty = [name for name, one in zip(found.rows, series, strict=True) if one is None]
    return SeriesTable(kept, grid, found.count, empty)


def _take(found: _Rows, record: Mapping[str, Any], where: str) -> None:
    keys = found.keys
    for name in (keys.time_field, *keys.known):
        if name not in record:
            shown = ", ".join(map(repr, record))
            key = "data.time_field=COLUMN" if name == keys.time_field else "data.known without it"
            raise DataError(f"{where}: no column {name!r} (columns here: {shown}): write {key}")
    try:
        time = parsed(record[keys.time_field], keys.time_format)
    except ValueError:
        found.odd_times.append((where, record[keys.time_field]))
        return
    known = []
    for name in keys.known:
        value = _number(record[name], name, where, found)
        if value is None:
            raise DataError(f"{where}: {name!r} has no value, but data.known says that it is known at every step")
        known.append(value)
    for series, column in _columns(found, record, where):
        value = _number(record[column], column, where, found)
        found.rows.setdefault(series, []).append((time, value, tuple(known), where))


def _columns(found: _Rows, record: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    """Yield name of series and column of a row."""
    keys = found.keys
    long = keys.layout is Layout.long or (keys.layout is Layout.auto and keys.value_field in record)
    if long:
        if keys.value_field not in record:
            shown = ", ".join(map(repr, record))
            raise DataError(
                f"{where}: no column {keys.value_field!r} (columns here: {shown}): write data.value_field=COLUMN"
            )
        name = record.get(keys.series_field)
        yield ("series" if name is None else str(name)), keys.value_field
        return
    if not found.columns:
        found.columns = [name for name in record if name not in (keys.time_field, *keys.known)]
        if not found.columns:
            raise DataError(f"{where}: no column besides {keys.time_field!r} and data.known: there is no series")
    yield from ((name, name) for name in found.columns if name in record)


def _number(value: Any, name: str, where: str, found: _Rows) -> float | None:
    """Return a number, None if there is none."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "nan", "na", "null")):
        return None
    by_comma = isinstance(value, str) and found.keys.decimal is DecimalMark.comma
    try:
        number = number_by_comma(value) if by_comma else float(value)
    except (TypeError, ValueError):
        reason, advice = "text", "not a number: fix it, or leave it empty"
        if by_comma:
            reason, advice = "points", "not a number like 1.234,5: fix it, or write data.decimal=point"
        elif has_comma(value):
            reason, advice = "commas", "not a number: where numbers have a decimal comma, write data.decimal=comma"
        elif name in found.columns:
            other = words({"series": name, "value": "COLUMN"})
            advice = f"{advice}; if this column names the series, write {other}"
        raise CellError(f"{where}: {name!r} is {value!r}, {advice}", f"{reason} in {name}") from None
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise DataError(f"{where}: {name!r} is infinite: fix it, or leave it empty")
    return number


def _on_grid(name: str, rows: list[Row], grid: Grid, found: _Rows) -> Series | None:
    """Put the rows of a series in order; faulty rows are reported."""
    known, first = found.keys.known, rows[0][0]
    refusing = found.keys.gaps is OnGap.refuse
    last = max((at for at, row in enumerate(rows) if row[1] is not None), default=-1)
    begin = next((at for at, row in enumerate(rows) if row[1] is not None), len(rows))
    numbers, before = [], None
    for at, (time, value, _, where) in enumerate(rows):
        number = grid.number(time, first)
        fault = None
        if number != int(number):
            begun = f"begins at {first:%Y-%m-%dT%H:%M}"
            fault = f"{where}: {time:%Y-%m-%dT%H:%M:%S} does not fit the steps of one {grid.name} that {begun}"
        elif before is not None and number == before:
            fault = (
                f"{where}: {time:%Y-%m-%dT%H:%M} appears twice in series {name!r}: remove one (where clocks were set "
                "back, write times in UTC or with their offset)"
            )
        elif before is not None and number - before > (1 if refusing else FAR):
            missing = int(number - before) - 1
            fault = (
                f"{where}: {missing:,} steps of one {grid.name} are missing before {time:%Y-%m-%dT%H:%M} in series "
                f"{name!r}: fill them, or write data.gaps=mask"
            )
        elif refusing and value is None and begin < at < last:
            fault = f"{where}: series {name!r} has no value at {time:%Y-%m-%dT%H:%M}: write one, or data.gaps=mask"
        if fault is not None:
            found.faults.add(DataError(fault))
        before = int(number)
        numbers.append(before)
    if found.faults.count or last < 0:
        return None
    begins, ends = numbers[begin], numbers[last]
    values = np.full(ends - begins + 1, np.nan, dtype=np.float32)
    columns = np.zeros((numbers[-1] - begins + 1, len(known)), dtype=np.float32)
    previous = 0
    for number, (_, value, given, _) in zip(numbers, rows, strict=True):
        at = number - begins
        if at < 0:
            continue
        columns[previous : at + 1] = given  # a masked gap keeps its known columns
        previous = at + 1
        if value is not None:
            values[at] = value
    return Series(name, grid.time(first, begins), values, columns, int(np.isnan(values).sum()))
