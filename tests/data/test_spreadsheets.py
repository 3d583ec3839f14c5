"""Tables as offices export them: each is read right, or refused with one clear line."""

import csv
import datetime
import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import openpyxl.chart
import pytest

from aitrain.config.data import Records
from aitrain.data import spreadsheets
from aitrain.data.records import read_records
from aitrain.data.source import Source
from aitrain.errors import DataError
from aitrain.tasks.data_files import source_of

TWO = [{"vraag": "één?", "antwoord": "ja; nee"}, {"vraag": "twee", "antwoord": 'zegt "ja",\nniet nee'}]


def written(rows: list[dict[str, str]], delimiter: str = ",", ends: str = "\r\n") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=ends)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read(path: Path, **how: Any) -> list[dict[str, Any]]:
    found = []
    for _, record in read_records(source_of(path, Records(path="", **how))):
        if isinstance(record, DataError):
            raise record
        found.append(record)
    return found


SEMICOLONS = written(TWO, ";")
AB = [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
WIDE = {f"kolom {number}": str(number) for number in range(100)}

READ_RIGHT: dict[str, tuple[str, bytes, list[dict[str, str]]]] = {
    "English Excel": ("a.csv", written(TWO).encode("utf-8-sig"), TWO),
    "European Excel": ("a.csv", SEMICOLONS.encode("cp1252"), TWO),
    "European Excel, UTF-8": ("a.csv", SEMICOLONS.encode("utf-8-sig"), TWO),
    "Excel's Unicode text": ("a.csv", written(TWO, "\t").encode("utf-16"), TWO),
    "tabs named CSV": ("a.csv", written(TWO, "\t").encode(), TWO),
    "TSV": ("a.tsv", written(TWO, "\t").encode(), TWO),
    "TSV with one column": ("a.tsv", b"text\njust one, or two\n", [{"text": "just one, or two"}]),
    "pipes, Unix line ends": ("a.csv", written(TWO, "|", "\n").encode(), TWO),
    "Excel on a Mac": ("a.csv", written(TWO, ";", "\r").replace("\n", "\r").encode("mac_roman"), TWO),
    "hint for Excel": ("a.csv", b"sep=;\r\n" + SEMICOLONS.encode("cp1252"), TWO),
    "blank lines at both ends": ("a.csv", b"\r\n\r\n" + SEMICOLONS.encode() + b"\r\n;\r\n", TWO),
    "delimiter at the end of rows": ("a.csv", b"a;b;\r\n1;2;\r\n3;4;\r\n", AB),
    "blanks around names": ("a.csv", b" a ,b \n 1,2\n", [{"a": " 1", "b": "2"}]),
    "decimal commas": ("a.csv", b"a;b\nx;1,5\ny;2,5\n", [{"a": "x", "b": "1,5"}, {"a": "y", "b": "2,5"}]),
    "numbers as text": ("a.csv", b"nr,tel\n007,0612\n", [{"nr": "007", "tel": "0612"}]),
    "an empty cell": ("a.csv", b"a,b\n1,\n", [{"a": "1", "b": ""}]),
    "a column without values": ("a.csv", b"a;leeg;b\n1;;2\n", [{"a": "1", "leeg": "", "b": "2"}]),
    "100 columns": ("a.csv", written([WIDE], ";").encode(), [WIDE]),
    "row numbers of pandas": (
        "a.csv", b",a,b\n0,1,2\n1,3,4\n", [{"index": "0", "a": "1", "b": "2"}, {"index": "1", "a": "3", "b": "4"}]
    ),
    "one column with commas in the text": ("a.csv", b"text\nja, hoor\nnee, toch\nnee\n", [{"text": "ja, hoor"}]),
    "one column": ("a.csv", b"text\none\ntwo\n", [{"text": "one"}, {"text": "two"}]),
    "more semicolons in the text than in the header": (
        "a.csv", b'a,b\n"x;y;z","p;q"\n"x;y;z","p;q"\n', [{"a": "x;y;z", "b": "p;q"}] * 2
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", READ_RIGHT)
def test_read_right(tmp_path: Path, which: str) -> None:
    name, content, records = READ_RIGHT[which]
    (tmp_path / name).write_bytes(content)
    if which == "one column with commas in the text":
        with pytest.raises(DataError, match="a.csv:2: 2 fields, but the header names 1 column"):
            read(tmp_path / name)
        assert read(tmp_path / name, delimiter="tab") == [{"text": "ja, hoor"}, {"text": "nee, toch"}, {"text": "nee"}]
        return
    assert read(tmp_path / name) == records


REFUSED = {
    "duplicate names": (b"naam;naam\n1;2\n", "a.csv:1: the header names 'naam' more than once: give each column"),
    "a name is missing": (b"a;;c\n1;2;3\n", "a.csv:1: column 2 has no name in the header 'a', '', 'c'"),
    "two indexes": (b",index\n1,2\n", "a.csv:1: column 1 has no name in the header '', 'index'"),
    "a row is too short": (b"a;b\n1;2\n3\n", 'a.csv:3: 1 fields, but the header names 2 columns: put a field that'),
    "a row is too long": (b"a;b\n1;2\n3;4;5\n", "a.csv:3: 3 fields, but the header names 2 columns"),
    "a title above": (b"Export 2025\na;b;c\n1;2;3\n4;5;6\n", "column names are further down, write data.header_row=N"),
    "an open quote": (b'a;b\n1;"2\n3;4\n', "a.csv:2: broken CSV (unexpected end of data): check the quotes"),
    "two delimiters": (b"a,b;c\n1,2;3\n4,5;6\n", "comma and semicolon fit equally well as the delimiter: write"),
}  # fmt: skip


@pytest.mark.parametrize("which", REFUSED)
def test_refused_in_one_line(tmp_path: Path, which: str) -> None:
    content, expected = REFUSED[which]
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.csv")
    assert expected in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_header_further_down_and_a_given_delimiter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"Export 2025\n\na;b,c\n1;2,3\n")
    assert read(tmp_path / "a.csv", header_row=3, delimiter="semicolon") == [{"a": "1", "b,c": "2,3"}]
    assert read(tmp_path / "a.csv", header_row=3, delimiter=",") == [{"a;b": "1;2", "c": "3"}]


def workbook(path: Path, *rows: list[Any], sheets: dict[str, list[list[Any]]] | None = None, merge: str = "") -> Path:
    book = openpyxl.Workbook()
    first = book.worksheets[0]
    for row in rows:
        first.append(row)
    if merge:
        first.merge_cells(merge)
    for name, content in (sheets or {}).items():
        sheet = book.create_sheet(name)
        for row in content:
            sheet.append(row)
    book.save(path)
    return path


def test_excel_cells_are_text_as_in_csv(tmp_path: Path) -> None:
    day, hour = datetime.datetime(2025, 3, 31), datetime.datetime(2025, 3, 31, 14, 30)
    rows = [
        ["vraag", "nr", "prijs", "dag", "uur", "ja"],
        ["één\ntwee", 7, 1.5, day, hour, True],
        ["x", 3.0, None, None],
    ]
    found = read(workbook(tmp_path / "a.xlsx", *rows))
    assert found[0] == {
        "vraag": "één\ntwee", "nr": "7", "prijs": "1.5", "dag": "2025-03-31", "uur": "2025-03-31T14:30:00", "ja": "true"
    }  # fmt: skip
    assert found[1] == {"vraag": "x", "nr": "3", "prijs": "", "dag": "", "uur": "", "ja": ""}


def test_excel_sheets(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", ["a"], ["1"], sheets={"Klanten": [["b"], ["2"]]})
    assert read(path) == [{"a": "1"}] and read(path, sheet="Klanten") == [{"b": "2"}]
    assert Source.of(path).notes() == ["a.xlsx: reading sheet 'Sheet'; data.sheet chooses another: 'Klanten'"]
    with pytest.raises(DataError, match="a.xlsx: no sheet 'klanten': write data.sheet as one of 'Sheet', 'Klanten'"):
        read(path, sheet="klanten")


def test_excel_files_that_begin_with_another_sheet(tmp_path: Path) -> None:
    """A cover page, an empty sheet, and a sheet with only a chart, which has no cells at all."""
    data = [["b"], ["2"]]
    cover = workbook(tmp_path / "a.xlsx", ["Export 2026"], sheets={"Daten 2026": data})
    with pytest.raises(DataError, match="a.xlsx: sheet 'Sheet' contains no record: write data.sheet='Daten 2026'"):
        read(cover)
    assert read(cover, sheet="Daten 2026") == [{"b": "2"}]
    with pytest.raises(DataError, match="sheet 'Sheet' contains no record: write data.sheet as one of 'x', 'y'"):
        read(workbook(tmp_path / "b.xlsx", sheets={"x": data, "y": data}))

    book = openpyxl.load_workbook(cover)
    chart = openpyxl.chart.BarChart()
    chart.add_data(openpyxl.chart.Reference(book["Daten 2026"], min_col=1, min_row=1, max_row=2))
    book.create_chartsheet("Diagramm", 0).add_chart(chart)
    del book["Sheet"]
    book.save(tmp_path / "c.xlsx")
    assert read(tmp_path / "c.xlsx") == [{"b": "2"}] and Source.of(tmp_path / "c.xlsx").notes() == []
    with pytest.raises(DataError, match="no sheet 'Diagramm': write data.sheet as one of 'Daten 2026'"):
        read(tmp_path / "c.xlsx", sheet="Diagramm")


def test_a_hidden_sheet_is_read_only_when_it_is_named(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", ["list"], ["x"], sheets={"Daten": [["b"], ["2"]], "Mehr": [["c"], ["3"]]})
    book = openpyxl.load_workbook(path)
    book["Sheet"].sheet_state = "hidden"
    book.active = 1
    book.save(path)
    assert read(path) == [{"b": "2"}] and read(path, sheet="Sheet") == [{"list": "x"}]
    assert Source.of(path).notes() == ["a.xlsx: reading sheet 'Daten'; data.sheet chooses another: 'Mehr'"]


def rewritten(path: Path, part: str, change: Callable[[bytes], bytes]) -> Path:
    """Change one part of an Excel file, as a program that writes them by itself would."""
    with zipfile.ZipFile(path) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    assert change(parts[part]) != parts[part]
    parts[part] = change(parts[part])
    with zipfile.ZipFile(path, "w") as book:
        for name, content in parts.items():
            book.writestr(name, content)
    return path


@pytest.mark.parametrize("size", [b"A1", b"A1:A2", b"A1:C90", b""])
def test_the_size_that_an_excel_file_claims_is_not_believed(size: bytes, tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", ["a", "b"], ["1", "2"], ["3", None], ["5", "6"])
    claim = b'<dimension ref="%s" />' % size if size else b""
    rewritten(path, "xl/worksheets/sheet1.xml", lambda xml: re.sub(rb"<dimension [^>]*>", claim, xml))
    assert read(path) == [{"a": "1", "b": "2"}, {"a": "3", "b": ""}, {"a": "5", "b": "6"}]


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("xl/worksheets/sheet1.xml", "a.xlsx: row 1 of sheet 'Sheet' is broken"),
        ("xl/workbook.xml", "a.xlsx is not an Excel file that can be read"),
        ("xl/styles.xml", "a.xlsx is not an Excel file that can be read"),
        ("[Content_Types].xml", "a.xlsx is not an Excel file that can be read"),
    ],
)
def test_broken_excel_files(part: str, says: str, tmp_path: Path) -> None:
    path = rewritten(workbook(tmp_path / "a.xlsx", ["a", "b"], ["1", "2"]), part, lambda xml: xml[: len(xml) // 2])
    with pytest.raises(DataError, match=f"^{says}.*: open it and save it again as .xlsx$"):
        read(path)


def test_an_excel_file_with_a_password(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600))
    with pytest.raises(DataError, match="a.xlsx has a password, or is an older .xls: open it and save it again as .xl"):
        read(tmp_path / "a.xlsx")


def test_excel_headers(tmp_path: Path) -> None:
    merged = workbook(tmp_path / "a.xlsx", ["klant", "", "antwoord"], ["1", "2", "3"], merge="A1:B1")
    with pytest.raises(DataError, match=r"a.xlsx:1: column 2 has no name in the header .*\(merged cells keep only"):
        read(merged)
    titled = workbook(tmp_path / "b.xlsx", ["Export"], [], ["a", "b"], [1, 2])
    with pytest.raises(DataError, match="header names 1 column: if the column names are further down, write data.hea"):
        read(titled)
    assert read(titled, header_row=3) == [{"a": "1", "b": "2"}]
    (tmp_path / "c.xlsx").write_text("no")
    with pytest.raises(DataError, match="c.xlsx is not an Excel file"):
        read(tmp_path / "c.xlsx")


def test_columns_get_other_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("vraag;antwoord;klant\n1;2;3\n")
    found = read(tmp_path / "a.csv", columns={"prompt": "vraag", "completion": "antwoord"})
    assert found == [{"prompt": "1", "completion": "2", "klant": "3"}]
    swapped = read(tmp_path / "a.csv", columns={"vraag": "antwoord", "antwoord": "vraag"})
    assert swapped == [{"antwoord": "1", "vraag": "2", "klant": "3"}]
    with pytest.raises(DataError, match="a.csv:2: no column 'vrag' .* for data.columns: did you mean 'vraag'"):
        read(tmp_path / "a.csv", columns={"prompt": "vrag"})
    with pytest.raises(DataError, match="reads 'vraag' as 'klant', but there is a column 'klant' too: rename one"):
        read(tmp_path / "a.csv", columns={"klant": "vraag"})


def test_names_of_delimiters() -> None:
    assert spreadsheets.delimiter_name(";") == "semicolon" and spreadsheets.delimiter_name("~") == "'~'"
