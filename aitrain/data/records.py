"""Reads data files: one record at a time, each with its place; a fault names file and line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aitrain.config.values import nearest
from aitrain.data import spreadsheets
from aitrain.data.column_names import missing_column
from aitrain.data.documents import read_documents
from aitrain.data.encodings import encoding_of, lines_of, marked_encoding
from aitrain.data.source import SUFFIXES, Source
from aitrain.errors import DataError

Record = dict[str, Any]
Placed = tuple[str, Record | DataError]
"""Place of a record ("train.jsonl:17"), and the record or why it cannot be used."""


def read_records(source: Source | Path, text_field: str | None = None) -> Iterator[Placed]:
    """Read every record of data files, in their order, including those that cannot be read.

    Args:
        source: The files and how they are read; for a path, format and encoding are detected.
        text_field: Key that must hold plain text in every record; the key under which the documents of text files are
            given ("text" when None).

    Yields:
        Place and record, or why it cannot be used: it is not an object, or has no text. The place is `name:line` where
        the format has lines, else `name[index]` counted from 0.

    Raises:
        DataError: A file is missing, empty, of an unsupported type or broken as a whole.
    """
    source = Source.of(source) if isinstance(source, Path) else source
    count = 0
    for file in source.files:
        check_file(file)
        for where, record in _renamed(_reader(source, file, text_field or "text"), source):
            count += 1
            fault = (
                None if isinstance(record, DataError) or text_field is None else text_fault(record, text_field, where)
            )
            yield where, fault or record
    if not count:
        size = sum(file.stat().st_size for file in source.files)
        below = f" below row {source.header_row} (data.header_row)" if source.header_row > 1 else ""
        raise DataError(f"{source.path} contains no record{below} ({size} bytes): add data, or name another file")


def _renamed(placed: Iterable[Placed], source: Source) -> Iterator[Placed]:
    """Rename columns as `data.columns` says."""
    if not source.columns:
        yield from placed
        return
    for where, record in placed:
        if isinstance(record, DataError):
            yield where, record
            continue
        columns = _to_rename(source, record)
        missing = [name for name in columns.values() if name not in record]
        taken = [new for new, old in columns.items() if new in record and new not in columns.values()]
        if missing:
            keys = ", ".join(map(repr, record))
            guess = next((near for name in missing if (near := nearest(name, record))), None)
            hint = f"did you mean {guess!r}?" if guess else "write one of these"
            hint = f" for data.columns: {hint}" if source.needed is None else ": rename the one that holds it"
            yield where, DataError(f"{where}: no column {missing[0]!r} (columns here: {keys}){hint}")
        elif taken:
            old = columns[taken[0]]
            text = f"{where}: data.columns reads {old!r} as {taken[0]!r}, but there is a column {taken[0]!r} too"
            yield where, DataError(f"{text}: rename one of them in the file")
        else:
            names = {old: new for new, old in columns.items()}
            yield where, {names.get(name, name): value for name, value in record.items()}


def _to_rename(source: Source, record: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the columns to rename: all of them; for a prediction, those that are there or needed."""
    if source.needed is None:
        return source.columns
    demanded = {new for new in source.needed if new not in record}
    return {new: old for new, old in source.columns.items() if old in record or new in demanded}


def check_file(path: Path) -> None:
    """Refuse a path that is not a data file.

    Args:
        path: Where the data should be.

    Raises:
        DataError: Nothing is there, it is not a file, it cannot be opened, or its type is not supported.
    """
    if not path.exists():
        raise DataError(f"data file {path} does not exist: check data.path and data.validation_path")
    if not path.is_file():
        raise DataError(f"{path} is not a file: name a file that ends with {', '.join(SUFFIXES)}")
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{path} {unsupported(path, SUFFIXES)}")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} is not readable for this user: change its permissions")


def unsupported(path: Path, known: Sequence[str]) -> str:
    """Return that the type of a file is not supported, and what to do with it.

    Args:
        path: The file.
        known: Ends of the names of those that are.
    """
    saved = {".xls": "save it as .xlsx", ".ods": "save it as .xlsx or .csv", ".doc": "save it as .docx"}
    saved |= {".pdf": "convert it to .txt, for instance with `pdftotext`", ".zip": "unpack it and name the folder"}
    advice = saved.get(path.suffix.lower())
    return f"has an unsupported file type (supported: {', '.join(known)})" + (f": {advice}" if advice else "")


def check_source(source: Source) -> None:
    """Refuse a source with an unreadable file.

    Args:
        source: The files.

    Raises:
        DataError: See `check_file`.
    """
    for file in source.files:
        check_file(file)


def _reader(source: Source, path: Path, text_field: str) -> Iterator[Placed]:
    name, suffix = source.name_of(path), path.name.lower().removesuffix(".gz")
    if suffix.endswith(".jsonl"):
        return _read_jsonl(path, name, source.encoding)
    if suffix.endswith(".json"):
        return _read_json(path, name, source.encoding)
    if suffix.endswith(".parquet"):
        return _read_parquet(path, name)
    if suffix.endswith(spreadsheets.TEXT_SUFFIXES):
        return spreadsheets.read_csv(path, name, source.encoding, source.delimiter, source.header_row)
    if suffix.endswith(spreadsheets.SUFFIXES):
        return spreadsheets.read_xlsx(path, name, source.sheet, source.header_row)
    found = read_documents(path, name, source.encoding, source.is_whole)
    return ((where, {text_field: text}) for where, text in found)


def text_fault(record: Record, field: str, where: str) -> DataError | None:
    """Return why a record holds no text, or None.

    Args:
        record: The record.
        field: Key that must hold it.
        where: Its place.
    """
    if field not in record:
        return missing_column(record, field, where, "data.text_field")
    if not isinstance(record[field], str):
        return DataError(f"{where}: {field!r} is {_kind(record[field])}, not text")
    return None


def _json_lines(path: Path, given: str | None) -> Iterator[tuple[int, str | DataError]]:
    """Yield the lines of a JSON file, which is UTF-8 unless a byte order mark or the recipe says otherwise."""
    return lines_of(path, encoding_of(path, given).name if given else marked_encoding(path) or "utf-8")


def _read_jsonl(path: Path, name: str, encoding: str | None) -> Iterator[Placed]:
    for number, line in _json_lines(path, encoding):
        where = f"{name}:{number}"
        if isinstance(line, DataError):
            yield where, line
        elif line.strip():
            try:
                yield where, _checked(json.loads(line), where, _may_be_half(line))
            except json.JSONDecodeError as fault:
                yield (
                    where,
                    DataError(
                        f"{where}:{fault.pos + 1}: broken JSON ({fault.msg}): every line must be one complete object"
                    ),
                )
            except (ValueError, RecursionError) as fault:
                yield where, DataError(f"{where}: {_unreadable(fault)}")


def _read_json(path: Path, name: str, encoding: str | None) -> Iterator[Placed]:
    lines = []
    for _, line in _json_lines(path, encoding):
        if isinstance(line, DataError):
            raise line
        lines.append(line)
    text = "".join(lines)
    if not text.strip():
        return
    try:
        records = json.loads(text)
    except json.JSONDecodeError as fault:
        hint = ": one object per line? then name the file .jsonl" if fault.msg == "Extra data" else ""
        raise DataError(f"{name}:{fault.lineno}:{fault.colno}: broken JSON ({fault.msg}){hint}") from None
    except (ValueError, RecursionError) as fault:
        raise DataError(f"{name}: {_unreadable(fault)}") from None
    if not isinstance(records, list):
        raise DataError(f"{name} holds {_kind(records)}, not a list of objects: write [{{...}}, {{...}}] or .jsonl")
    halves = _may_be_half(text)
    for index, record in enumerate(records):
        yield f"{name}[{index}]", _checked(record, f"{name}[{index}]", halves)


def _unreadable(fault: Exception) -> str:
    """Return why well-formed JSON cannot be read: Python limits nesting and the digits of a number."""
    if isinstance(fault, RecursionError):
        return "lists and objects are nested too deeply to be read: flatten the record"
    return "a number has too many digits to be read (more than 4,300): write it as text"


def _may_be_half(text: str) -> bool:
    """Whether escapes of a text may be half of a surrogate pair."""
    return "\\ud" in text or "\\uD" in text


def _checked(record: Any, where: str, halves: bool) -> Record | DataError:
    if not isinstance(record, dict):
        return DataError(f'{where}: {_kind(record)}, not an object: write {{"key": value, ...}}')
    try:
        if halves:
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as fault:
        half = f"\\u{ord(fault.object[fault.start]):04x}"
        return DataError(f"{where}: {half} is half of a surrogate pair: write both halves, or the character itself")
    return record


def _read_parquet(path: Path, name: str) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            index = 0
            for batch in file.iter_batches(batch_size=1024):
                for record in _parquet_rows(batch, f"{name}[{{}}]", index):
                    yield f"{name}[{index}]", record
                    index += 1
    except (pyarrow.ArrowException, OSError) as fault:
        raise DataError(f"{name} is not a complete Parquet file: {fault}") from None


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
        return DataError(f"{where}: not UTF-8 ({fault.reason}): save the file again with text in UTF-8")
    except (ValueError, OverflowError) as fault:
        return DataError(f"{where}: a value cannot be read ({fault})")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    for kind, word in ((bool, "true or false"), (str, "a string"), (int, "a number"), (float, "a number")):
        if isinstance(value, kind):
            return word
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__
