"""Columns are proposed from common names in four languages, with words that the command line takes."""

import shlex

import pytest

from aitrain.data.column_names import missing_column, proposed, words
from aitrain.recipe import compose


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (["vraag", "antwoord", "klant"], ["vraag", "antwoord"]),
        (["klant", "Vraag van klant", "Antwoord (NL)"], ["Vraag van klant", "Antwoord (NL)"]),
        (["Frage", "Antwort"], ["Frage", "Antwort"]),
        (["question", "réponse"], ["question", "réponse"]),
        (["id", "Question", "Answer"], ["Question", "Answer"]),
        (["input", "output"], ["input", "output"]),
        (["a", "b"], []),
        (["vraag", "b"], []),
        (["frage"], []),
    ],
)
def test_question_and_answer(columns: list[str], found: list[str]) -> None:
    assert list(proposed(columns, ("prompt", "completion")).values()) == found


def test_other_names() -> None:
    assert proposed(["Omschrijving", "Afdeling"], ("text", "label")) == {"text": "Omschrijving", "label": "Afdeling"}
    assert proposed(["tijdstip", "verbruik"], ("time", "value")) == {"time": "tijdstip", "value": "verbruik"}


@pytest.mark.parametrize(
    "name", ["vraag", "Vraag van klant", 'réponse (1), "x": [y]', "l'avis", "null", "a\\b", "2024"]
)
def test_the_words_are_taken_by_a_shell_and_by_the_command_line(name: str) -> None:
    typed = shlex.split(words({"prompt": name, "completion": "b"}))
    data = compose("sft_lora", ["model.path=m", "data.path=d.csv", *typed]).data
    assert data.columns == {"prompt": name, "completion": "b"}  # type: ignore[attr-defined]


def test_a_missing_column() -> None:
    text = str(missing_column({"body": 1, "x": 2}, "text", "a.csv:2", "data.text_field"))
    assert text == "a.csv:2: no column or key 'text' (here: 'body', 'x'): write data.columns.text=body"
    assert str(missing_column({"x": 2}, "text", "a.csv:2", "data.text_field")).endswith("write data.text_field=COLUMN")
    assert str(missing_column({}, "prompt", "a:1")).endswith("(here: none): write data.columns.prompt=COLUMN")
