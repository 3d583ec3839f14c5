"""Words with labels and places in a text say the same; what contradicts itself names file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aitrain.config.data import Tagged
from aitrain.data.spans import read_tagged, spans_in
from aitrain.errors import DataError

DATA = Tagged(path="x.jsonl")


def write(tmp_path: Path, *records: dict[str, Any]) -> Path:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def entity(start: int, end: int, label: str = "P") -> dict[str, Any]:
    return {"start": start, "end": end, "label": label}


def test_places_and_words_give_the_same_labels(tmp_path: Path) -> None:
    by_place, by_word = read_tagged(
        write(
            tmp_path,
            {"text": "Dr Jan de Wit (47)", "entities": [entity(3, 13), entity(15, 17, "AGE")]},
            {
                "tokens": ["Dr", "Jan", "de", "Wit", "(", "47", ")"],
                "labels": ["O", "B-P", "I-P", "I-P", "O", "B-AGE", "O"],
            },
        ),
        DATA,
    )
    assert by_place.labels == by_word.labels
    assert [by_place.text[a:b] for a, b in by_place.words] == [by_word.text[a:b] for a, b in by_word.words]


def test_an_entity_inside_a_word_cuts_it(tmp_path: Path) -> None:
    (one,) = read_tagged(write(tmp_path, {"text": "order42x", "entities": [entity(5, 7)]}), DATA)
    assert [one.text[a:b] for a, b in one.words] == ["order", "42", "x"] and one.labels == ["O", "B-P", "O"]


def test_two_entities_side_by_side_stay_two(tmp_path: Path) -> None:
    (one,) = read_tagged(write(tmp_path, {"text": "Jan Piet", "entities": [entity(0, 3), entity(4, 8)]}), DATA)
    assert one.labels == ["B-P", "B-P"] and list(spans_in(one.labels)) == [(0, 1, "P"), (1, 2, "P")]


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        (["B-A", "I-A", "O"], [(0, 2, "A")]),
        (["B-A", "I-B"], [(0, 1, "A"), (1, 2, "B")]),
        (["I-A", "I-A"], [(0, 2, "A")]),
        (["O", "B-A", "B-A", "I-A"], [(1, 2, "A"), (2, 4, "A")]),
        ([], []),
    ],
)
def test_spans(labels: list[str], spans: list[tuple[int, int, str]]) -> None:
    assert list(spans_in(labels)) == spans


GOOD = {"text": "Jan", "entities": [entity(0, 3)]}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"title": "x"}, "x.jsonl:2: neither a list 'tokens' nor a text 'text' (keys here: 'title')"),
    "empty": ({"text": " ", "entities": []}, "x.jsonl:2: 'text' is empty"),
    "no entities": ({"text": "a"}, "x.jsonl:2: no list 'entities': write [] where nothing is marked"),
    "overlap": (
        {"text": "Jan de Wit", "entities": [entity(0, 6), entity(4, 10, "Q")]},
        "x.jsonl:2: entities overlap: 'Jan de' (P) and 'de Wit' (Q): keep one of them",
    ),
    "outside": ({"text": "Jan", "entities": [entity(0, 9)]}, "x.jsonl:2: entity 0 to 9 is not inside the text of 3"),
    "no entity": ({"text": "Jan", "entities": [{"start": 0}]}, "is not an entity: write {"),
    "too few labels": ({"tokens": ["a", "b"], "labels": ["O"]}, "x.jsonl:2: 'labels' has 1 entries for 2 words"),
    "no scheme": ({"tokens": ["a"], "labels": ["PERSON"]}, "x.jsonl:2: label 'PERSON' of word 0 is not O, B-NAME"),
    "inside first": ({"tokens": ["a"], "labels": ["I-P"]}, "word 0 has 'I-P' after 'O': an entity begins with B-P"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_records_name_file_and_line(tmp_path: Path, kind: str) -> None:
    record, says = WRONG[kind]
    with pytest.raises(DataError) as caught:
        read_tagged(write(tmp_path, GOOD, record), DATA)
    assert says in str(caught.value)


def test_labels_that_training_lacks_and_texts_without_any(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x.jsonl:1: label 'P' is not among those of the training data \('Q'\)"):
        read_tagged(write(tmp_path, GOOD), DATA, known=["Q"])
    with pytest.raises(DataError, match="no text has a marked entity"):
        read_tagged(write(tmp_path, {"text": "a", "entities": []}), DATA)
