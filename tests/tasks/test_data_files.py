"""A recipe names a file, a folder, a pattern or a list; what was found out about them is said."""

import gzip
from pathlib import Path

import pytest

from aitrain.config.data import Documents, Files, Images, Labelled, Records, Text
from aitrain.config.paths import listed
from aitrain.data.records import read_records
from aitrain.errors import DataError
from aitrain.io.files import file_digest
from aitrain.recipe import compose
from aitrain.tasks.data_files import data_faults, reading_notes, source_of, source_to_predict

RECORDS = Records(path="")


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    (tmp_path / "2025").mkdir()
    (tmp_path / "b.csv").write_bytes("vraag;antwoord\néén;1\n".encode("cp1252"))
    (tmp_path / "a.jsonl").write_text('{"vraag": "nul", "antwoord": "0"}\n')
    (tmp_path / "2025" / "b.csv").write_text("vraag;antwoord\ntwee;2\n")
    (tmp_path / "notes.pdf").write_text("x")
    (tmp_path / ".hidden.csv").write_text("x")
    (tmp_path / "~$b.xlsx").write_text("x")
    return tmp_path


def test_a_folder_is_read_in_the_order_of_names(exports: Path) -> None:
    source = source_of(exports, RECORDS)
    assert [source.name_of(file) for file in source.files] == ["a.jsonl", "b.csv", "2025/b.csv"]
    assert source.name == f"{exports.name} (3 files)"
    assert [where for where, _ in read_records(source)] == ["a.jsonl:1", "b.csv:2", "2025/b.csv:2"]
    assert source.notes() == [
        f"{exports}: 3 files, read in the order of their names",
        f"{exports}: 1 files not read (notes.pdf)",
        "b.csv: read as Windows-1252 (één); if letters are wrong, write data.encoding=NAME",
        "2 files: delimiter semicolon (found; data.delimiter sets another)",
    ]


def test_a_pattern_and_a_list(exports: Path) -> None:
    assert [file.name for file in source_of(str(exports / "*.csv"), RECORDS).files] == ["b.csv"]
    assert len(source_of(str(exports / "**" / "*.csv"), RECORDS).files) == 2
    given = compose("sft_lora", ["model.path=m", f"data.path=[{exports}/a.jsonl,{exports}/b.csv]"]).data.path
    assert [file.name for file in source_of(given, RECORDS).files] == ["a.jsonl", "b.csv"]
    assert listed("a.csv") == ["a.csv"] and listed('["odd') == ['["odd']
    with pytest.raises(DataError, match=r"data.path=.*\*.xlsx: no file matches"):
        source_of(str(exports / "*.xlsx"), RECORDS)
    with pytest.raises(DataError, match="the same file is named twice"):
        source_of(f'["{exports}/b.csv", "{exports}/2025/../b.csv"]', RECORDS)


def test_a_decimal_comma_is_for_tables_that_are_text(tmp_path: Path) -> None:
    """Excel's own numbers have none: 10.5 would be read as 105."""
    (tmp_path / "a.xlsx").write_text("x")
    words = [f"data.path={tmp_path}/a.xlsx", "data.decimal=comma"]
    (fault,) = data_faults(compose("forecast_timeseries", words))
    assert fault == "data.decimal=comma is for CSV files, and there are others: save them as CSV, or remove it"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("Tekst;Afdeling\na;b\n", {"text": "a", "label": "b"}),
        ("Tekst\na\n", {"text": "a"}),
        ("text\na\n", {"text": "a"}),
        ("text;Afdeling\na;b\n", {"text": "a", "label": "b"}),
        ("Onderwerp;Afdeling\na;b\n", "no column 'Tekst' (columns here: 'Onderwerp', 'Afdeling'): rename the one that"),
        ("Tekst;text\na;b\n", "data.columns reads 'Tekst' as 'text', but there is a column 'text' too: rename one"),
    ],
)
def test_a_file_to_predict_for_may_lack_what_was_learned(
    content: str, found: dict[str, str] | str, tmp_path: Path
) -> None:
    (tmp_path / "new.csv").write_text(content)
    data = Labelled(path="", columns={"text": "Tekst", "label": "Afdeling"})
    ((_, record),) = read_records(source_to_predict(tmp_path / "new.csv", data, "text"))
    assert record == found or (isinstance(found, str) and found in str(record))
    if found == {"text": "a"}:
        ((_, as_in_training),) = read_records(source_of(tmp_path / "new.csv", data))
        assert isinstance(as_in_training, DataError), "training needs every column"


def test_training_and_test_data_in_one_folder_are_kept_apart(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("a\n1\n")
    with pytest.raises(DataError) as caught:
        source_of(tmp_path, RECORDS)
    assert f"write data.path={tmp_path}/train.csv data.validation_path={tmp_path}/test.csv" in str(caught.value)


def test_documents_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.md").write_text("# three\n\nfour\n")
    source = source_of(tmp_path, Text(path=""))
    assert [record for _, record in read_records(source)] == [{"text": "one\n\ntwo"}, {"text": "# three\n\nfour"}]
    assert source.notes() == [f"{tmp_path}: 2 files, one document each"]
    apart = source_of(tmp_path, Text(path="", documents=Documents.blank_lines))
    assert [where for where, _ in read_records(apart)] == ["a.txt:1", "a.txt:3", "b.md:1", "b.md:3"]
    assert apart.digest() != source.digest()


def test_the_digest_holds_what_decides_the_records(exports: Path) -> None:
    path = exports / "b.csv"
    plain = source_of(path, RECORDS).digest()
    assert plain == source_of(path).digest()
    assert plain != source_of(path, Records(path="", columns={"prompt": "vraag"})).digest()
    assert plain != source_of(path, Records(path="", encoding="latin-1")).digest()
    assert source_of(exports, RECORDS).digest() != plain
    assert source_of(exports / "a.jsonl", RECORDS).digest() == file_digest(exports / "a.jsonl")
    assert source_of(exports / "b.csv", RECORDS).digest() != file_digest(exports / "b.csv"), "its encoding is a guess"


def test_folders_that_a_task_reads_stay_whole(exports: Path) -> None:
    assert source_of(exports, Images(path="")).files == (exports,)
    assert source_of(exports, Files(path="")).files == (exports,)


def test_faults_and_notes_of_a_recipe(exports: Path) -> None:
    words = ["model.path=m", f"data.path={exports}/b.csv", f"data.validation_path={exports}/no.csv"]
    config = compose("sft_lora", words)
    assert data_faults(config) == [
        f"data.validation_path={exports}/no.csv does not exist: did you mean {exports}/b.csv?"
    ]
    (exports / "empty.csv").touch()
    (fault,) = data_faults(compose("sft_lora", ["model.path=m", f"data.path={exports}"]))
    assert fault == f"data.path={exports}/empty.csv is empty: it needs at least one record"
    notes = reading_notes(compose("sft_lora", words[:2]))
    assert [note.partition(":")[0] for note in notes] == ["b.csv", "b.csv"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        (
            "data.sheet=Klanten",
            "data.sheet=Klanten has no effect: it is for Excel files, and there are none; remove it",
        ),
        ("data.delimiter=semicolon", "data.delimiter=semicolon has no effect: it is for CSV files"),
        ("data.header_row=2", "data.header_row=2 has no effect: it is for CSV and Excel files"),
        ("data.encoding=cp1252", ""),
    ],
)
def test_keys_that_no_file_needs_are_refused(exports: Path, word: str, says: str) -> None:
    faults = data_faults(compose("sft_lora", ["model.path=m", f"data.path={exports}/a.jsonl", word]))
    assert [fault[: len(says)] for fault in faults] == ([says] if says else [])


def test_a_packed_text_file_is_read_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n\ntwo\n"))
    found = [record for _, record in read_records(source_of(tmp_path / "a.txt.gz", Text(path="")))]
    assert found == [{"text": "one"}, {"text": "two"}]
