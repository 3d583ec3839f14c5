"""A run's model answers the records of a file, however that is written; nothing is overwritten."""

from __future__ import annotations

import codecs
import csv
import io
import json
from pathlib import Path

import pytest

from aitrain.errors import AitrainError, DataError, RecipeError
from aitrain.trainer.prediction import _table, predict

from .conftest import Ended


def test_answers_to_a_table_without_answers(trained: Ended, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new.csv"
    file.write_bytes("Export 2026;\r\nprompt;klant\r\nWie zegt één?;7\r\n".encode("cp1252"))
    predict(trained.directory.path, file, None, "newest", overrides=["data.header_row=2"])
    said = capsys.readouterr()
    (answer,) = [json.loads(line) for line in said.out.splitlines()]
    assert answer["prompt"] == "Wie zegt één?" and set(answer) == {"prompt", "answer"}
    assert "new.csv: read as Windows-1252 (één)" in said.err and "delimiter semicolon" in said.err

    to = tmp_path / "answers.jsonl"
    predict(trained.directory.path, file, to, "2", overrides=["data.header_row=2"])
    assert len(to.read_text().splitlines()) == 1 and "answers.jsonl: 1 record\n" in capsys.readouterr().err
    table = tmp_path / "answers.csv"
    predict(trained.directory.path, file, table, "newest", overrides=["data.header_row=2"])
    content = table.read_bytes().decode("utf-8-sig")
    assert table.read_bytes().startswith(codecs.BOM_UTF8) and content.startswith("prompt;answer\r\n")
    assert list(csv.DictReader(io.StringIO(content), delimiter=";")) == [answer]


def test_a_table_of_nested_values() -> None:
    rows = [{"text": "a,b", "probabilities": {"x": 0.25, "y": 0.75}}, {"text": 'c "d"', "spans": [{"start": 1}]}]
    assert _table(rows, ",") == (
        'text,probabilities.x,probabilities.y,spans\r\n"a,b",0.25,0.75,\r\n"c ""d""",,,"[{""start"": 1}]"\r\n'
    )
    assert _table(rows[:1], ";") == "text;probabilities.x;probabilities.y\r\na,b;0,25;0,75\r\n"


def test_what_is_refused(trained: Ended, tmp_path: Path) -> None:
    run, file, to = trained.directory.path, tmp_path / "new.csv", tmp_path / "answers.jsonl"
    file.write_text("prompt\nHello\n")
    with pytest.raises(DataError, match="none.csv does not exist: name a file of records like those of training"):
        predict(run, tmp_path / "none.csv", None, "newest")
    with pytest.raises(RecipeError, match="optim.lr belongs to the run, whose recipe is frozen"):
        predict(run, file, to, "newest", overrides=["optim.lr=1"])
    with pytest.raises(DataError, match=r"contains no record below row 5 \(data.header_row\)"):
        predict(run, file, to, "newest", overrides=["data.header_row=5"])
    assert not to.exists()
    to.write_text("mine")
    with pytest.raises(AitrainError, match="answers.jsonl exists already: name a new file, nothing is overwritten"):
        predict(run, file, to, "newest")
    assert to.read_text() == "mine"
