"""Reading data files: one record at a time, each with the place it came from; a fault names file and line."""

from __future__ import annotations

import csv
import gzip
import json
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aitrain.errors import DataError

Record = dict[str, Any]
Placed = tuple[str, Record | DataError]
"""Where a record stands ("train.jsonl:17"), and the record or why it cannot be used."""

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv", ".txt")

_BOM = b"\xef\xbb\xbf"


def read_records(path: Path, text_field: str | None = None) -> Iterator[Placed]:
    """Read every record of a data file, in file order, those that cannot be read included.

    Args:
        path: A file with one of the known suffixes.
        text_field: Key that must hold plain text in every record; the key under which the documents of a `.txt` file
            are given ("text" when None).

    Yields:
        Place and record, or why it cannot be used: it is no object, has no text or is not UTF-8. The place is
        `name:line` where the format has lines, else `name[index]` counted from 0.

    Raises:
        DataError: The file is missing, empty, of an unknown kind or broken as a whole.
    """
    check_file(path)
    count = 0
    for where, record in _reader(path, text_field or "text"):
        count += 1
        fault = None if isinstance(record, DataError) or text_field is None else text_fault(record, text_field, where)
        yield where, fault or record
    if not count:
        raise DataError(f"{path} holds no record ({path.stat().st_size} bytes): give a file with data")


def check_file(path: Path) -> None:
    """Refuse a path that cannot be a data file.

    Args:
        path: Where the data shall be.

    Raises:
        DataError: Nothing is there, it is no file, it cannot be opened, or its name ends with no known suffix.
    """
    if not path.exists():
        raise DataError(f"data file {path} does not exist: check data.path and data.validation_path")
    if not path.is_file():
        raise DataError(f"{path} is no file: give one file that ends with {', '.join(SUFFIXES)}")
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{path} is of an unknown kind: the name must end with one of {', '.join(SUFFIXES)}")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} may not be read by this user: change its permissions")


def _reader(path: Path, text_field: str) -> Iterator[Placed]:
    name = path.name.lower()
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _read_jsonl(path)
    if name.endswith(".json"):
        return _read_json(path)
    if name.endswith(".parquet"):
        return _read_parquet(path)
    if name.endswith(".csv"):
        return _read_csv(path)
    return _read_text(path, text_field)


def text_fault(record: Record, field: str, where: str) -> DataError | None:
    """Return why a record holds no text, or None.

    Args:
        record: The record.
        field: Key that must hold it.
        where: Its place.
    """
    if field not in record:
        keys = ", ".join(map(repr, record)) or "none"
        return DataError(f"{where}: no key {field!r} (keys here: {keys}): write data.text_field=KEY")
    if not isinstance(record[field], str):
        return DataError(f"{where}: {field!r} is {_kind(record[field])}, not text")
    return None


def _lines(path: Path) -> Iterator[tuple[int, str | DataError]]:
    """Yield line number (from 1) and text with its line end; lines end at \\n only, as JSON Lines has it."""
    number = 0
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.removeprefix(_BOM) if number == 1 else raw
                try:
                    yield number, line.decode("utf-8")
                except UnicodeDecodeError as fault:
                    byte = f"byte 0x{line[fault.start]:02x} at {fault.start + 1} of the line"
                    advice = "convert the file, for instance with `iconv -t utf-8`"
                    yield number, DataError(f"{path.name}:{number}: not UTF-8 ({byte}): {advice}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as fault:
        raise DataError(f"{path.name}: broken gzip data after line {number} ({fault}): write the file again") from None


def _whole_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield lines as `_lines` does, for formats in which one line that cannot be read spoils the rest."""
    for number, line in _lines(path):
        if isinstance(line, DataError):
            raise line
        yield number, line


def _read_jsonl(path: Path) -> Iterator[Placed]:
    for number, line in _lines(path):
        where = f"{path.name}:{number}"
        if isinstance(line, DataError):
            yield where, line
        elif line.strip():
            try:
                yield where, _checked(json.loads(line), where, _may_be_half(line))
            except json.JSONDecodeError as fault:
                yield (
                    where,
                    DataError(
                        f"{where}:{fault.pos + 1}: broken JSON ({fault.msg}): every line must be one whole object"
                    ),
                )
            except (ValueError, RecursionError) as fault:
                yield where, DataError(f"{where}: {_unreadable(fault)}")


def _read_json(path: Path) -> Iterator[Placed]:
    text = "".join(line for _, line in _whole_lines(path))
    if not text.strip():
        return
    try:
        records = json.loads(text)
    except json.JSONDecodeError as fault:
        hint = ": one object per line? then name the file .jsonl" if fault.msg == "Extra data" else ""
        raise DataError(f"{path.name}:{fault.lineno}:{fault.colno}: broken JSON ({fault.msg}){hint}") from None
    except (ValueError, RecursionError) as fault:
        raise DataError(f"{path.name}: {_unreadable(fault)}") from None
    if not isinstance(records, list):
        raise DataError(
            f"{path.name} holds {_kind(records)}, not a list of objects: write [{{...}}, {{...}}] or .jsonl"
        )
    halves = _may_be_half(text)
    for index, record in enumerate(records):
        yield f"{path.name}[{index}]", _checked(record, f"{path.name}[{index}]", halves)


def _unreadable(fault: Exception) -> str:
    """Say why JSON that is well formed cannot be read: Python bounds nesting and the digits of a number."""
    if isinstance(fault, RecursionError):
        return "lists and objects are nested too deeply to be read: flatten the record"
    return "a number has too many digits to be read (more than 4,300): write it as text"


def _may_be_half(text: str) -> bool:
    """Whether escapes of a text may stand for half a character."""
    return "\\ud" in text or "\\uD" in text


def _checked(record: Any, where: str, halves: bool) -> Record | DataError:
    if not isinstance(record, dict):
        return DataError(f'{where}: {_kind(record)}, not an object: write {{"key": value, ...}}')
    try:
        if halves:
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as fault:
        half = f"\\u{ord(fault.object[fault.start]):04x}"
        return DataError(f"{where}: {half} is half of a character: write both halves or the character")
    return record


def _read_parquet(path: Path) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            index = 0
            for batch in file.iter_batches(batch_size=1024):
                for record in _parquet_rows(batch, f"{path.name}[{{}}]", index):
                    yield f"{path.name}[{index}]", record
                    index += 1
    except (pyarrow.ArrowException, OSError) as fault:
        raise DataError(f"{path.name} is no whole Parquet file: {fault}") from None


def _parquet_rows(batch: Any, place: str, first: int) -> list[Record | DataError]:
    try:
        rows: list[Record | DataError] = batch.to_pylist()
        return rows
    except (ValueError, OverflowError):  # some row cannot be read: find out which
        return [_parquet_row(batch, row, place.format(first + row)) for row in range(batch.num_rows)]


def _parquet_row(batch: Any, row: int, where: str) -> Record | DataError:
    try:
        return {name: column[row].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    except UnicodeDecodeError as fault:
        return DataError(f"{where}: not UTF-8 ({fault.reason}): write the file again with text in UTF-8")
    except (ValueError, OverflowError) as fault:
        return DataError(f"{where}: a value cannot be read ({fault})")


def _read_csv(path: Path) -> Iterator[Placed]:
    # Python stops at 128 KiB per cell; a long document is no fault.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    rows = csv.reader((line for _, line in _whole_lines(path)), strict=True)
    header: list[str] | None = None
    begin = 1
    try:
        for row in rows:
            where, begin = f"{path.name}:{begin}", rows.line_num + 1
            if not row:
                continue
            if header is None:
                header = row
                twice = sorted({key for key in header if header.count(key) > 1})
                if twice or "" in header:
                    raise DataError(f"{where}: the first row must name every column once; found {header}")
            elif len(row) != len(header):
                yield (
                    where,
                    DataError(
                        f"{where}: {len(row)} fields, but the first row names {len(header)} columns: "
                        'put a field with commas, quotes or line ends into "..."'
                    ),
                )
            else:
                yield where, dict(zip(header, row, strict=True))
    except csv.Error as fault:
        raise DataError(f"{path.name}:{begin}: broken CSV ({fault})") from None


def _read_text(path: Path, field: str) -> Iterator[Placed]:
    document: list[str] = []
    begin = 1
    for number, line in _whole_lines(path):
        if line.strip():
            if not document:
                begin = number
            document.append(line)
        elif document:
            yield f"{path.name}:{begin}", {field: "".join(document).rstrip("\r\n")}
            document = []
    if document:
        yield f"{path.name}:{begin}", {field: "".join(document).rstrip("\r\n")}


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    for kind, word in ((bool, "true or false"), (str, "a string"), (int, "a number"), (float, "a number")):
        if isinstance(value, kind):
            return word
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__
