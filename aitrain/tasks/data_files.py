"""Finds the data files that a recipe names: a file, a folder, a pattern, or a list of those. No torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from aitrain.config import RunConfig
from aitrain.config.custom import UserClass
from aitrain.config.data import Data, DecimalMark, Files, Images, Readable, Series, Text
from aitrain.config.paths import listed
from aitrain.config.values import nearest
from aitrain.data import documents, spreadsheets
from aitrain.data.records import unsupported
from aitrain.data.source import RECORD_SUFFIXES, SUFFIXES, Source
from aitrain.errors import AitrainError, DataError
from aitrain.models.assets import local_path

SPLITS = ("train", "training", "test", "validation", "valid", "val", "dev", "eval")
"""Common names of training and evaluation files in one folder."""

_HIDDEN = (".", "~$")
"""Prefixes of hidden files and of the lock files of Office."""


def source_of(given: str | Path, data: Data | None = None, key: str = "data.path") -> Source:
    """Find the files that a recipe names.

    Args:
        given: A file, a folder, a glob, or a list of those as `aitrain.config.paths.listed` reads it.
        data: How they are read; None = everything is found out.
        key: The key that names them, for messages.

    Raises:
        DataError: There is no such file, or a folder cannot be read as one set of records.
        ModelError: An asset is not there.
    """
    names = [str(given)] if isinstance(given, Path) else listed(given)
    is_other = isinstance(data, UserClass) or not (data is None or isinstance(data, Readable))
    if is_other or (isinstance(data, Images) and len(names) == 1 and local_path(names[0]).is_dir()):
        path = local_path(names[0])
        return Source(path, (path,))
    is_text = isinstance(data, Text)
    found: list[Path] = []
    skipped: list[str] = []
    for name in names:
        for path in _expanded(name, key):
            inside, others = _inside(path, is_text, key) if path.is_dir() else ([path], [])
            found += inside
            skipped += others
    files = tuple(dict.fromkeys(found))
    whole = {path.resolve() for path in files}
    if len(whole) < len(files):
        raise DataError(f"{key}={given}: the same file is named twice: remove one")
    first = local_path(names[0]) if len(names) == 1 and not glob.has_magic(names[0]) else files[0].parent
    how = {} if data is None else _reading(data)
    return Source(first, files, is_text, skipped=tuple(skipped), **how)  # type: ignore[arg-type]


def source_to_predict(path: Path, data: Data, *inputs: str) -> Source:
    """Find the files to predict for: read as in training, but without what training learns from them.

    Args:
        path: A file or a folder.
        data: How training reads its data.
        inputs: Names of the columns that must be there.

    Raises:
        DataError: There is no such file, or a folder cannot be read as one set of records.
    """
    return replace(source_of(path, data), needed=frozenset(inputs))


def _reading(data: Data) -> dict[str, object]:
    assert isinstance(data, Readable), "asked only of data that is read here"
    how: dict[str, object] = {"encoding": data.encoding, "delimiter": data.delimiter, "sheet": data.sheet}
    how |= {"header_row": data.header_row, "columns": data.columns}
    return how | ({"documents": data.documents} if isinstance(data, Text) else {})


def _expanded(name: str, key: str) -> list[Path]:
    path = local_path(name)
    if path.exists() or not glob.has_magic(name):
        return [path]
    matches = [Path(each) for each in glob.glob(str(path), recursive=True)]
    found = sorted(path for path in matches if path.is_file() and not path.name.startswith(_HIDDEN))
    if not found:
        raise DataError(f"{key}={name}: no file matches: check the pattern, or name a folder")
    return found


def _inside(folder: Path, is_text: bool, key: str) -> tuple[list[Path], list[str]]:
    """Return the files of a folder that can be read, in the order of their names, and the names of the others."""
    wanted = documents.SUFFIXES if is_text else RECORD_SUFFIXES
    kinds = SUFFIXES if is_text else RECORD_SUFFIXES
    found: list[Path] = []
    others: list[str] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(names):
            if not name.startswith(_HIDDEN):
                (found if name.lower().endswith(kinds) else others).append(Path(root, name))  # type: ignore[arg-type]
    if not found:
        raise DataError(f"{key}={folder}: no file in this folder is supported: it must contain {', '.join(wanted)}")
    parts = {path.relative_to(folder).parts[0].split(".")[0].lower(): path for path in found}
    splits = [part for part in SPLITS if part in parts]
    if len(splits) > 1 and {*splits} & {"train", "training"}:
        at = [folder / parts[part].relative_to(folder).parts[0] for part in splits]
        raise DataError(
            f"{key}={folder} holds {', '.join(path.name for path in at)}: training on all of it would leave nothing to "
            f"evaluate on: write data.path={at[0]} data.validation_path={at[-1]}"
        )
    return found, [str(Path(name).name) for name in others]


def data_faults(config: RunConfig) -> list[str]:
    """Return which data files are missing, empty or of an unsupported type, one sentence each.

    Args:
        config: A checked configuration.
    """
    faults: list[str] = []
    read: list[Path] = []
    for key, given in (("data.path", config.data.path), ("data.validation_path", config.data.validation_path)):
        if given is None:
            continue
        if not given.strip():
            faults.append(f"{key} is empty: write the path of a file")
            continue
        try:
            source = source_of(given, config.data, key)
        except AitrainError as error:
            faults.append(str(error) if str(error).startswith(key) else f"{key}={given}: {error}")
            continue
        read += source.files
        for file in source.files:
            fault = _file_fault(file, config.data)
            if fault is not None:
                name = given if len(source.files) == 1 else str(file)
                faults.append(f"{key}={name} {fault}")
    return faults or list(_idle_keys(config.data, read))


def _idle_keys(data: Data, files: Sequence[Path]) -> Iterator[str]:
    """Yield keys for a kind of file of which there is none."""
    if not isinstance(data, Readable) or not files:
        return
    names = [file.name.lower() for file in files]
    sheets, rows = (".xlsx", ".xlsm"), spreadsheets.SUFFIXES
    no_letters = (".parquet", ".docx", *sheets)
    for key, is_given, ends, kind in (
        ("sheet", data.sheet is not None, sheets, "Excel files"),
        ("delimiter", data.delimiter is not None, spreadsheets.TEXT_SUFFIXES, "CSV files"),
        ("header_row", data.header_row != 1, rows, "CSV and Excel files"),
    ):
        if is_given and not any(name.endswith(ends) for name in names):
            yield f"data.{key}={getattr(data, key)} has no effect: it is for {kind}, and there are none; remove it"
    has_marks = all(name.endswith(spreadsheets.TEXT_SUFFIXES) for name in names)
    if isinstance(data, Series) and data.decimal is not DecimalMark.point and not has_marks:
        yield f"data.decimal={data.decimal.name} is for CSV files, and there are others: save them as CSV, or remove it"
    if data.encoding is not None and all(name.endswith(no_letters) for name in names):
        yield f"data.encoding={data.encoding} has no effect: these file formats define their own encoding; remove it"


def _file_fault(path: Path, data: Data) -> str | None:
    """Return why a file cannot be read, or None."""
    whatever = isinstance(data, (Files, UserClass))
    if not path.exists():
        return "does not exist" + _beside(path)
    if path.is_dir():
        return None  # read by the task, or a folder of images
    known = SUFFIXES if isinstance(data, Text) else RECORD_SUFFIXES
    if not path.name.lower().endswith(known) and not whatever:
        folder = " (or a folder of images)" if isinstance(data, Images) else ""
        if path.name.lower().endswith(documents.SUFFIXES):
            return f"is plain text, but records are read here ({', '.join(known)}): for plain text write task=pretrain"
        return unsupported(path, known) + folder
    if path.stat().st_size == 0:
        return "is empty: it needs at least one record"
    if not os.access(path, os.R_OK):
        return "is not readable for you: ask its owner, or change its permissions"
    return None


def _beside(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    guess = nearest(path.name, [p.name for p in path.parent.iterdir()])
    return f": did you mean {path.parent / guess}?" if guess else f": there is no such file in {path.parent}"


def reading_notes(config: RunConfig) -> list[str]:
    """Return what was detected about the data files: encodings, delimiters, sheets.

    Args:
        config: A checked configuration.

    Raises:
        DataError: A file cannot be read.
    """
    if isinstance(config.data, (Files, UserClass)):
        return []
    given = {"data.path": config.data.path, "data.validation_path": config.data.validation_path}
    return [note for key, paths in given.items() if paths for note in source_of(paths, config.data, key).notes()]
