"""Plain text: a document per file or between blank lines, and Word files with their tables."""

import zipfile
from pathlib import Path

import docx
import pytest

from aitrain.data.documents import read_documents
from aitrain.errors import DataError


def test_blank_lines_or_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\none\n\n two\nthree\n", encoding="utf-8")
    assert list(read_documents(path, "a.txt", None, whole=False)) == [("a.txt:2", "one"), ("a.txt:4", " two\nthree")]
    assert list(read_documents(path, "x/a.txt", None, whole=True)) == [("x/a.txt", "\none\n\n two\nthree")]


def test_an_encoding_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes("# Één café\n".encode("cp1252"))
    assert list(read_documents(path, "a.md", None, whole=True)) == [("a.md", "# Één café")]


def test_word_files(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_heading("Opzeggen")
    document.add_paragraph("Dat kan op één dag.")
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "kosten", "€ 5"
    document.add_paragraph("Einde.")
    document.save(str(tmp_path / "a.docx"))
    found = list(read_documents(tmp_path / "a.docx", "a.docx", None, whole=True))
    assert found == [("a.docx", "Opzeggen\nDat kan op één dag.\nkosten\t€ 5\nEinde.")]


def test_what_is_not_a_word_file(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    path.write_text("no")
    with pytest.raises(DataError, match="a.docx is not a Word document"):
        list(read_documents(path, "a.docx", None, whole=True))


@pytest.mark.parametrize("broken", ["word/document.xml", "word/styles.xml", "[Content_Types].xml", "_rels/.rels"])
def test_broken_word_files(broken: str, tmp_path: Path) -> None:
    docx.Document().save(str(tmp_path / "whole.docx"))
    path = tmp_path / "a.docx"
    with zipfile.ZipFile(tmp_path / "whole.docx") as whole, zipfile.ZipFile(path, "w") as copy:
        for name in whole.namelist():
            content = whole.read(name)
            copy.writestr(name, content[: len(content) // 2] if name == broken else content)
    with pytest.raises(DataError, match=r"^a.docx is not a Word document .*: open it and save it again as .docx$"):
        list(read_documents(path, "a.docx", None, whole=True))


def test_a_word_file_with_a_password(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600))
    with pytest.raises(DataError, match="a.docx has a password, or is an older .doc: open it and save it again"):
        list(read_documents(tmp_path / "a.docx", "a.docx", None, whole=True))


def test_nothing_is_no_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(" \n\n")
    assert list(read_documents(path, "a.txt", None, whole=True)) == []
