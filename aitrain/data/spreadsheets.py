"""Reads exported tables: CSV and TSV with any of the usual delimiters, and Excel's XLSX."""

from __future__ import annotations

import csv
import datetime
import importlib.util
import itertools
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from aitrain.config.data import DELIMITERS
from aitrain.data.documents import is_locked_or_old
from aitrain.data.encodings import encoding_of, lines_of
from aitrain.errors import DataError

TEXT_SUFFIXES = (".csv", ".tsv", ".tab", ".csv.gz", ".tsv.gz")
SUFFIXES = (*TEXT_SUFFIXES, ".xlsx", ".xlsm")

_LOOKED_AT = 200
"""Rows that are read to detect the delimiter."""

Row = tuple[int, list[str]]
"""Line on which a row begins, and its cells."""

Placed = tuple[str, dict[str, Any] | DataError]


def delimiter_name(delimiter: str) -> str:
    """Return the name of a delimiter, or the character if it has none.

    Args:
        delimiter: The character.
    """
    return next((name for name, sign in DELIMITERS.items() if sign == delimiter), repr(delimiter))


def read_csv(path: Path, name: str, encoding: str | None, delimiter: str | None, header_row: int) -> Iterator[Placed]:
    """Yield place and record of each row of a text table.

    Args:
        path: The file.
        name: Its name in messages.
        encoding: As the recipe gives it; None = found from the file.
        delimiter: As the recipe gives it, a name or the character; None = found from the file.
        header_row: Line of the header, counted from 1.

    Raises:
        DataError: The header cannot be used, or the file is broken as a whole.
    """
    yield from _records(_csv_rows(path, name, encoding, delimiter), name, header_row, _DELIMITED)


def delimiter_of(path: Path, encoding: str | None = None, given: str | None = None) -> str:
    """Return the delimiter of a text table: as given, or the one that splits most rows as it splits the header.

    Args:
        path: The file.
        encoding: As the recipe gives it; None = found from the file.
        given: As the recipe gives it, a name or the character; None = found from the file.

    Raises:
        DataError: Two of them fit equally well.
    """
    if given is not None:
        return DELIMITERS.get(given, given)
    stat = path.stat()
    return _delimiter(path, encoding_of(path, encoding).name, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _delimiter(path: Path, encoding: str, _modified_ns: int, _size: int) -> str:
    lines = [line for _, line in islice(lines_of(path, encoding), 20 * _LOOKED_AT) if isinstance(line, str)]
    while lines and not lines[0].strip():
        lines.pop(0)
    if lines and (said := _excel_hint(lines[0])):
        return said
    found: dict[str, tuple[float, int]] = {}
    below: dict[str, tuple[float, int]] = {}
    for sign in DELIMITERS.values():
        widths = [len(row) for row in islice(_lenient(lines, sign), _LOOKED_AT)]
        if widths and widths[0] > 1:
            found[sign] = (widths.count(widths[0]) / len(widths), widths[0])
        elif widths:
            usual, times = Counter(widths[1:] or widths).most_common(1)[0]
            below[sign] = (times / max(1, len(widths) - 1), usual)
    is_tabbed = path.name.lower().endswith((".tsv", ".tab", ".tsv.gz"))
    if not found:
        return _below_a_title(below, "\t" if is_tabbed else ",")
    ranked = sorted(found, key=lambda sign: found[sign], reverse=True)
    if len(ranked) > 1 and found[ranked[0]] == found[ranked[1]] and not is_tabbed:
        names = " and ".join(delimiter_name(sign) for sign in ranked[:2])
        raise DataError(
            f"{path.name}: {names} fit equally well as the delimiter: write data.delimiter={delimiter_name(ranked[0])} "
            f"or data.delimiter={delimiter_name(ranked[1])}"
        )
    return ranked[0]


def _below_a_title(found: dict[str, tuple[float, int]], default: str) -> str:
    """Return the delimiter if none splits the first row: rows below a title all have the same width, while the
    number of commas in a column of text varies."""
    regular = [sign for sign, (share, width) in found.items() if share >= 0.8 and width > (2 if sign == "," else 1)]
    return max(regular, key=lambda sign: found[sign], default=default)


def _lenient(lines: list[str], sign: str) -> Iterator[list[str]]:
    """Yield the cells of rows that are not empty; an incomplete last row of the sample is not a fault."""
    rows = csv.reader(lines, delimiter=sign)
    while True:
        try:
            row = next(rows, None)
        except csv.Error:
            return
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield row


def _excel_hint(line: str) -> str | None:
    """Return the delimiter of a first line `sep=;`, which Excel writes and reads."""
    text = line.strip("\r\n\ufeff\"' ")
    return text[4] if text.lower().startswith("sep=") and len(text) == 5 else None


csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # Python stops at 128 KiB per cell; a long document is no fault


def _csv_rows(path: Path, name: str, encoding: str | None, delimiter: str | None) -> Iterator[Row]:
    sign = delimiter_of(path, encoding, delimiter)

    def lines() -> Iterator[str]:
        for number, line in lines_of(path, encoding_of(path, encoding).name):
            if isinstance(line, DataError):
                raise line
            if number == 1 and _excel_hint(line):
                line = "\n"
            yield line

    rows = csv.reader(lines(), delimiter=sign, strict=True)
    begin = 1
    try:
        for row in rows:
            yield begin, row
            begin = rows.line_num + 1
    except csv.Error as fault:
        advice = 'check the quotes: a field with quotes in it is written "like ""this"""'
        raise DataError(f"{name}:{begin}: broken CSV ({fault}): {advice}") from None


_DELIMITED = 'put a field that contains the delimiter, quotes or line breaks in "..."'
_CELLS = "give every value a column with a name"


def _records(rows: Iterable[Row], name: str, header_row: int, advice: str) -> Iterator[Placed]:
    """Yield a record for each row below the header."""
    header: list[str] | None = None
    for line, row in rows:
        where = f"{name}:{line}"
        if line < header_row or not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = _header(row, where)
            continue
        beyond = [cell for cell in row[len(header) :] if cell.strip()]
        if len(row) < len(header) or beyond:
            count = len(row)
            hint = f": {advice}"
            if len(header) == 1 and header_row == 1 and len(row) > 1:
                hint = f": if the column names are further down, write data.header_row=N; else {advice}"
            columns = "column" if len(header) == 1 else "columns"
            text = f"{where}: {count} fields, but the header names {len(header)} {columns}{hint}"
            yield where, DataError(text)
            continue
        # Line breaks inside a cell are written in as many ways as there are programs.
        yield where, {key: cell.replace("\r\n", "\n") for key, cell in zip(header, row, strict=False)}


def _header(row: Sequence[str], where: str) -> list[str]:
    """Return the names of the columns; unnamed ones at the end are allowed as long as they are empty.

    A first column without a name is called `index`: pandas writes the numbers of the rows there, and tables have their
    row labels there.
    """
    names = [cell.strip().removeprefix("\ufeff") for cell in row]
    while names and not names[-1]:
        names.pop()
    if names and not names[0] and "index" not in names:
        names[0] = "index"
    blank = [str(at) for at, name in enumerate(names, start=1) if not name]
    if blank:
        columns = f"column {blank[0]} has" if len(blank) == 1 else f"columns {', '.join(blank[:8])} have"
        raise DataError(
            f"{where}: {columns} no name in the header {name_list(names)} (merged cells keep only their first): give "
            "every column a name, or write data.header_row=N if the names are on another row"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where}: the header names {name_list(twice)} more than once: give each column its own name")
    return names


def name_list(names: Sequence[str]) -> str:
    """Return names of columns or sheets for a message, at most twelve.

    Args:
        names: The names.
    """
    shown = ", ".join(repr(name) for name in names[:12])
    return shown + (f", ... ({len(names)} in all)" if len(names) > 12 else "")


def sheet_names(path: Path) -> list[str]:
    """Return the names of the visible sheets of an Excel file, without chart sheets.

    Args:
        path: The file.

    Raises:
        DataError: It cannot be read.
    """
    with _workbook(path, path.name) as book:
        return [*_visible(book)]


def _visible(book: Any) -> dict[str, Any]:
    """Return the sheets with cells that are not hidden; all of them if none is visible."""
    sheets = {sheet.title: sheet for sheet in book.worksheets}
    return {title: sheet for title, sheet in sheets.items() if sheet.sheet_state == "visible"} or sheets


def read_xlsx(path: Path, name: str, sheet: str | None, header_row: int) -> Iterator[Placed]:
    """Yield place and record of each row of a sheet; cells are text, as in a CSV file.

    Args:
        path: The file.
        name: Its name in messages.
        sheet: Name of the sheet; None = the first that is not hidden.
        header_row: Row of the header, counted from 1.

    Raises:
        DataError: There is no such sheet or no record in it, the header cannot be used, or the file is broken.
    """
    with _workbook(path, name) as book:
        sheets = {each.title: each for each in book.worksheets}
        if not sheets:
            raise DataError(f"{name}: no sheet with cells, only charts: name a file with data")
        chosen = next(iter(_visible(book))) if sheet is None else sheet
        if chosen not in sheets:
            raise DataError(f"{name}: no sheet {chosen!r}: write data.sheet as one of {name_list([*sheets])}")
        is_empty = True
        for placed in _records(_same_width(_xlsx_rows(sheets[chosen], name)), name, header_row, _CELLS):
            is_empty = False
            yield placed
        if is_empty and len(sheets) > 1:
            others = [each for each in sheets if each != chosen]
            write = f"data.sheet={others[0]!r}" if len(others) == 1 else f"data.sheet as one of {name_list(others)}"
            raise DataError(f"{name}: sheet {chosen!r} contains no record: write {write}")


def _xlsx_rows(sheet: Any, name: str) -> Iterator[Row]:
    """Yield all rows of a sheet, whatever size the file claims: some programs write a wrong one."""
    sheet.reset_dimensions()
    rows = sheet.iter_rows(values_only=True)
    for at in itertools.count(1):
        try:
            row = next(rows, None)
        except Exception as fault:  # openpyxl raises whatever comes of a broken file
            raise DataError(f"{name}: row {at} of sheet {sheet.title!r} is broken ({fault}): {_SAVE_AGAIN}") from None
        if row is None:
            return
        yield at, [*map(_cell, row)]


def _same_width(rows: Iterable[Row]) -> Iterator[Row]:
    """Fill rows up to the width of the widest so far: Excel keeps no empty cells at the end of a row."""
    width = 0
    for line, row in rows:
        width = max(width, len(row))
        yield line, row + [""] * (width - len(row))


_SAVE_AGAIN = "open it and save it again as .xlsx"


@contextmanager
def _workbook(path: Path, name: str) -> Iterator[Any]:
    if importlib.util.find_spec("openpyxl") is None:
        raise DataError(f"{name}: Excel files need openpyxl: pip install 'aitrain[office]', or save it as CSV")
    import openpyxl

    if is_locked_or_old(path):
        raise DataError(f"{name} has a password, or is an older .xls: {_SAVE_AGAIN}, without a password")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats and validations, which are not read
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as fault:  # openpyxl raises whatever comes of a broken file
        raise DataError(f"{name} is not an Excel file that can be read ({fault}): {_SAVE_AGAIN}") from None
    try:
        yield book
    finally:
        book.close()


def _cell(value: Any) -> str:
    """Return a cell as it would be in a CSV file: 3 and not 3.0, dates in ISO 8601."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time()
        return value.date().isoformat() if midnight else value.isoformat()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value)
