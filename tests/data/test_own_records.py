"""Records that a class of the user's reads are checked like any others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aitrain.config.data import CustomRecords, CustomText
from aitrain.data.own_records import own_records
from aitrain.errors import AitrainError, DataError

READERS = """
from dataclasses import dataclass

class Lines:
    @dataclass
    class Options:
        mark: str = ":"

    def read(self, path):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            asked, answer = line.split(self.options.mark)
            yield f"{path.name}:{number}", {"prompt": asked, "completion": answer}

class Bare:
    def read(self, path):
        yield {"text": "no place"}

class Empty:
    def read(self, path):
        return iter(())

class Texts:
    def read(self, path):
        yield "a:1", {"text": "good"}
        yield "a:2", {"words": "bad"}
"""


def read(tmp_path: Path, name: str, text_field: str | None = None, **options: Any) -> list[Any]:
    (tmp_path / "readers.py").write_text(READERS)
    (tmp_path / "mails.txt").write_text("hello=hi\nbye=ciao\n")
    kind = CustomRecords if text_field is None else CustomText
    data = kind(path="mails.txt", file=str(tmp_path / "readers.py"), class_=name, options=options)
    return list(own_records(data, tmp_path / "mails.txt", text_field))


def test_places_and_records(tmp_path: Path) -> None:
    assert read(tmp_path, "Lines", mark="=") == [
        ("mails.txt:1", {"prompt": "hello", "completion": "hi"}),
        ("mails.txt:2", {"prompt": "bye", "completion": "ciao"}),
    ]


def test_text_is_asked_for(tmp_path: Path) -> None:
    (_, good), (_, bad) = read(tmp_path, "Texts", "text")
    assert good == {"text": "good"} and isinstance(bad, DataError) and "a:2: no column or key 'text'" in str(bad)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Lines", "data.class=Lines failed after record 0: ValueError"),
        ("Bare", "yields {'text': 'no place'}, not a place and a record"),
        ("Empty", "contains no record for data.class=Empty"),
    ],
)
def test_what_goes_wrong_is_one_line(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(AitrainError, match="(?s)" + says.replace("{", r"\{").replace("}", r"\}")):
        read(tmp_path, name)
