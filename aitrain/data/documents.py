"""Reads plain text: `.txt`, `.md` and Word's `.docx`, a document per file or between blank lines."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from aitrain.data.encodings import encoding_of, lines_of
from aitrain.errors import DataError

SUFFIXES = (".txt", ".md", ".docx", ".txt.gz", ".md.gz")


def read_documents(path: Path, name: str, encoding: str | None, whole: bool) -> Iterator[tuple[str, str]]:
    """Yield place and text of each document of a file.

    Args:
        path: The file.
        name: Its name in messages.
        encoding: As the recipe gives it; None = found from the file.
        whole: Whether the file is one document; else blank lines separate documents.

    Raises:
        DataError: The file cannot be read.
    """
    if path.name.lower().endswith(".docx"):
        text = _docx(path, name)
        if text.strip():
            yield name, text
        return
    document: list[str] = []
    begin = 1
    for number, line in lines_of(path, encoding_of(path, encoding).name):
        if isinstance(line, DataError):
            raise line
        if whole or line.strip():
            if not document:
                begin = number
            document.append(line)
        elif document:
            yield f"{name}:{begin}", "".join(document).rstrip("\r\n")
            document = []
    text = "".join(document).rstrip("\r\n")
    if text.strip():
        yield name if whole else f"{name}:{begin}", text


_OLE = bytes.fromhex("d0cf11e0a1b11ae1")


def is_locked_or_old(path: Path) -> bool:
    """Whether an Office file has a password, or a format older than .docx and .xlsx; both begin with the same bytes.

    Args:
        path: The file.
    """
    with path.open("rb") as file:
        return file.read(len(_OLE)) == _OLE


def _docx(path: Path, name: str) -> str:
    """Return the paragraphs and tables of a Word document, in their order."""
    if importlib.util.find_spec("docx") is None:
        raise DataError(f"{name}: Word files need python-docx: pip install 'aitrain[office]', or save it as .txt")
    if is_locked_or_old(path):
        raise DataError(
            f"{name} has a password, or is an older .doc: open it and save it again as .docx, without a password"
        )
    import docx
    from docx.table import Table

    try:
        parts = docx.Document(str(path)).iter_inner_content()
        lines = []
        for part in parts:
            if isinstance(part, Table):
                lines += ["\t".join(cell.text for cell in row.cells) for row in part.rows]
            else:
                lines.append(part.text)
    except Exception as fault:  # python-docx raises whatever comes of a broken file
        raise DataError(
            f"{name} is not a Word document that can be read ({fault}): open it and save it again as .docx"
        ) from None
    return "\n".join(lines).strip("\n")
