"""Every format gives the same records, and every fault names file and line."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from aitrain.data import records as records_module
from aitrain.errors import EXIT_DATA, DataError

RECORDS = [{"prompt": "Größe?\nZwei", "completion": 'sagt "ja", 你好'}, {"prompt": "b", "completion": "\u2028"}]


def read_records(path: Path, text_field: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read up to the first record that cannot be used, which is raised."""
    for where, record in records_module.read_records(path, text_field):
        if isinstance(record, DataError):
            raise record
        yield where, record


def refused(path: Path, text_field: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        list(read_records(path, text_field))
    assert caught.value.exit_code == EXIT_DATA
    return str(caught.value)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_json_lines_with_blank_lines_and_byte_order_mark(tmp_path: Path) -> None:
    lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    path = write(tmp_path / "a.jsonl", "\ufeff" + lines[0] + "\r\n\n  \n" + lines[1])
    assert list(read_records(path)) == [("a.jsonl:1", RECORDS[0]), ("a.jsonl:4", RECORDS[1])]


def test_compressed_json_lines(tmp_path: Path) -> None:
    content = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(content))
    assert list(read_records(path)) == [("a.jsonl.gz:1", RECORDS[0]), ("a.jsonl.gz:2", RECORDS[1])]


def test_json_list(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps(RECORDS, indent=1))
    assert list(read_records(path)) == [("a.json[0]", RECORDS[0]), ("a.json[1]", RECORDS[1])]


def test_parquet(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "a.parquet")
    assert list(read_records(tmp_path / "a.parquet")) == [("a.parquet[0]", RECORDS[0]), ("a.parquet[1]", RECORDS[1])]


def test_csv_with_line_ends_inside_a_field(tmp_path: Path) -> None:
    content = '\ufeffprompt,completion\r\n"Größe?\nZwei","sagt ""ja"", 你好"\r\n\r\nb,\u2028\r\n'
    path = write(tmp_path / "a.csv", content)
    assert list(read_records(path)) == [("a.csv:2", RECORDS[0]), ("a.csv:5", RECORDS[1])]


def test_csv_cell_longer_than_pythons_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\n" + "x" * 200_000 + "\n")
    assert len(next(read_records(path))[1]["text"]) == 200_000


def test_text_documents_are_separated_by_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n\none\n two\n\n \nthree\u2028four\n")
    assert list(read_records(path)) == [("a.txt:3", {"text": "one\n two"}), ("a.txt:7", {"text": "three\u2028four"})]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", "", "contains no record"),
        ("a.jsonl", "\n \n", "contains no record"),
        ("a.json", "", "contains no record"),
        ("a.json", "[]", "contains no record"),
        ("a.csv", "", "contains no record"),
        ("a.csv", "prompt,completion\n", "contains no record"),
        ("a.txt", " \n\n", "contains no record"),
        ("a.jsonl", '{"a": 1}\n\n{"a": }\n', "a.jsonl:3:7: broken JSON (Expecting value)"),
        ("a.jsonl", '{"a": 1}\n{"a": 1', "a.jsonl:2:8: broken JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "a.jsonl:2: a list, not an object"),
        ("a.jsonl", '"text"\n', "a.jsonl:1: a string, not an object"),
        ("a.jsonl", '{"a": "\\ud83d"}\n', "a.jsonl:1: \\ud83d is half of a surrogate pair"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', "a.jsonl:2: not UTF-8 (byte 0xe9 at 8"),
        ("a.json", '[{"a": 1},\n {"a": }]', "a.json:2:8: broken JSON"),
        ("a.json", '{"a": 1}\n{"a": 2}', "name the file .jsonl"),
        ("a.json", '{"a": 1}', "an object, not a list of objects"),
        ("a.json", '[{"a": 1}, null]', "a.json[1]: null, not an object"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", "a.csv:3: 3 fields, but the header names 2 columns"),
        ("a.csv", 'a,b\n"1\n1",2\n1\n', "a.csv:4: 1 fields"),
        ("a.csv", "a,a\n1,2\n", "names 'a' more than once"),
        ("a.csv", 'a,b\n1,"2\n', "a.csv:2: broken CSV"),
        ("a.csv", "a,b\n1,é\n1,".encode() + b"\xff\n", "a.csv:3: not UTF-8"),
        ("a.txt", "éé\n".encode() + b"\xff\n", "a.txt:2: not UTF-8"),
        ("a.parquet", "PAR1 but not really", "not a complete Parquet file"),
        ("a.yaml", "a: 1", "has an unsupported file type (supported: .jsonl, .jsonl.gz, .json, .parquet, .csv"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-12], "damaged gzip file"),
        ("a.jsonl.gz", b'{"a": 1}\n', "damaged gzip file"),
    ],
)
def test_faults_name_the_place(tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    assert expected in refused(write(tmp_path / name, content))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "no.jsonl")
    assert "is not a file" in refused(tmp_path)


def test_text_field(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"body": "one"}\n{"body": 2}\n')
    assert "a.jsonl:1: no column or key 'text' (here: 'body'): write data.columns.text=body" in refused(path, "text")
    assert "a.jsonl:2: 'body' is a number, not text" in refused(path, "body")
    assert list(read_records(write(tmp_path / "a.txt", "x\n"), "body")) == [("a.txt:1", {"body": "x"})]


def test_a_lone_backslash_ud_in_text_is_no_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": "\\\\ud83d and \\ud83d\\ude00"}\n')
    assert list(read_records(path)) == [("a.jsonl:1", {"a": "\\ud83d and \U0001f600"})]


@pytest.mark.parametrize("halves", [False, True])
def test_a_json_list_is_read_in_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halves: bool) -> None:
    """The whole text is looked at once, and each record at most once; else 20,000 records take minutes."""
    records = [{"text": f"{n} \U0001f600"} for n in range(500)]
    path = write(tmp_path / "a.json", json.dumps(records, ensure_ascii=halves))
    looked: list[int] = []
    original = records_module._may_be_half
    monkeypatch.setattr(records_module, "_may_be_half", lambda text: looked.append(len(text)) or original(text))
    written: list[int] = []
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda value, **more: written.append(1) or dumps(value, **more))
    assert len(list(read_records(path))) == 500
    assert looked == [len(path.read_text())] and len(written) == (500 if halves else 0)
