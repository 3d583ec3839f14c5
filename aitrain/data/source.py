"""Data files as a recipe names them: one file, several, a folder or a glob, and how to read them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aitrain.config.data import Documents
from aitrain.data import documents, spreadsheets
from aitrain.data.encodings import encoding_of
from aitrain.io.files import file_digest

RECORD_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", *spreadsheets.SUFFIXES)
SUFFIXES = (*RECORD_SUFFIXES, *documents.SUFFIXES)
"""Suffixes of files that hold records, and of all supported files."""

_IN_ANY_ENCODING = (*spreadsheets.TEXT_SUFFIXES, ".txt", ".md", ".txt.gz", ".md.gz")
"""Files that may be in any encoding."""


@dataclass(frozen=True)
class Source:
    """Files that are read one after the other as one."""

    path: Path
    """What the recipe names: a file or a folder; of several files, the first."""

    files: tuple[Path, ...]
    """The files, in the order they are read."""

    is_text: bool = False
    """Whether they hold documents rather than records."""

    encoding: str | None = None
    delimiter: str | None = None
    sheet: str | None = None
    header_row: int = 1
    columns: Mapping[str, str] = field(default_factory=dict)
    """Name that aitrain reads -> name in the files."""

    needed: frozenset[str] | None = None
    """Names whose columns must be there, under either name; None = every column of `columns`."""

    documents: Documents = Documents.auto
    skipped: tuple[str, ...] = ()
    """Unsupported files of a folder."""

    @classmethod
    def of(cls, path: Path) -> Source:
        """Return one file as a source, with format and encoding detected.

        Args:
            path: The file.
        """
        return cls(path, (path,))

    @property
    def name(self) -> str:
        """Its name in messages and summaries."""
        if len(self.files) == 1:
            return self.files[0].name
        return f"{self.path.name} ({len(self.files)} files)"

    def name_of(self, file: Path) -> str:
        """Return the name of one of the files in messages, with its folder if there are several.

        Args:
            file: One of `files`.
        """
        if len(self.files) == 1:
            return file.name
        return Path(os.path.relpath(file, os.path.commonpath([each.parent for each in self.files]))).as_posix()

    @property
    def is_whole(self) -> bool:
        """Whether each text file is one document."""
        if self.documents is Documents.auto:
            return len(self.files) > 1 or not self.files[0].name.lower().endswith((".txt", ".txt.gz"))
        return self.documents is Documents.file

    def digest(self) -> str:
        """Return a checksum of everything that determines the records."""
        how: list[object] = [self.encoding, self.delimiter, self.sheet, self.header_row, sorted(self.columns.items())]
        how.append(self.documents.name)
        usual: list[object] = [None, None, None, 1, [], "auto"]
        read = [self._reader(file) for file in self.files]
        if len(self.files) == 1 and how == usual and not any(read):
            return file_digest(self.files[0])
        if any(read):
            how.append(read)
        found = hashlib.sha256(repr(how).encode())
        for file in self.files:
            found.update(f"{self.name_of(file)}\0{file_digest(file)}\n".encode())
        return found.hexdigest()

    def _reader(self, file: Path) -> str:
        """Return what the records depend on besides the file and the keys; empty for most files."""
        name = file.name.lower()
        if name.endswith((".xlsx", ".xlsm")):
            return "xlsx 2"  # since rows beyond the size that a file claims are read
        if not name.endswith(_IN_ANY_ENCODING):
            return ""
        found = encoding_of(file, self.encoding)
        return found.name if found.is_guess else ""

    def notes(self) -> list[str]:
        """Return what was detected about the files, one sentence each.

        Raises:
            DataError: An encoding or a delimiter cannot be found.
        """
        lines = []
        if len(self.files) > 1:
            unit = "one document each" if self.is_text and self.is_whole else "read in the order of their names"
            lines.append(f"{self.path}: {len(self.files)} files, {unit}")
        if self.skipped:
            more = ", ..." if len(self.skipped) > 5 else ""
            lines.append(f"{self.path}: {len(self.skipped)} files not read ({', '.join(self.skipped[:5])}{more})")
        found: dict[str, list[Path]] = {}
        for file in self.files:
            for note in self._file_notes(file):
                found.setdefault(note, []).append(file)
        for note, files in found.items():
            where = self.name_of(files[0]) if len(files) == 1 else f"{len(files)} files"
            lines.append(f"{where}: {note}")
        return lines

    def _file_notes(self, file: Path) -> Iterator[str]:
        name = file.name.lower()
        if name.endswith(_IN_ANY_ENCODING):
            found = encoding_of(file, self.encoding)
            if found.is_guess:
                sample = f" ({found.sample})" if found.sample else ""
                yield f"read as {found.title}{sample}; if letters are wrong, write data.encoding=NAME"
        if name.endswith(spreadsheets.TEXT_SUFFIXES) and self.delimiter is None:
            sign = spreadsheets.delimiter_of(file, self.encoding)
            if sign != ("\t" if name.endswith((".tsv", ".tab", ".tsv.gz")) else ","):
                yield f"delimiter {spreadsheets.delimiter_name(sign)} (found; data.delimiter sets another)"
        if name.endswith((".xlsx", ".xlsm")) and self.sheet is None:
            sheets = spreadsheets.sheet_names(file)
            if len(sheets) > 1:
                others = spreadsheets.name_list(sheets[1:])
                yield f"reading sheet {sheets[0]!r}; data.sheet chooses another: {others}"
