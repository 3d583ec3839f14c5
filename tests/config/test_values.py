"""Keys and values: what is converted, what is refused, which word a misspelt one means."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from aitrain.config import RunConfig
from aitrain.config.adapter import Lora
from aitrain.config.data import Records
from aitrain.config.optim import AdamW
from aitrain.config.values import Faults, convert, format_value, keys, nearest, quoted, type_name
from aitrain.errors import RecipeError

TABLE = keys(RunConfig, {"optim": AdamW, "adapter": Lora, "data": Records})


def test_every_key_knows_its_type_default_and_owner() -> None:
    key = TABLE["optim.lr"]
    assert (key.hint, key.default, key.owner) == (float, 2e-5, AdamW)
    assert TABLE["seed"].owner is RunConfig
    assert "optim.nesterov" not in TABLE and "optim" not in TABLE


@pytest.mark.parametrize(
    ("name", "value", "becomes"),
    [
        ("optim.lr", 1, 1.0),
        ("optim.lr", "2e-5", 2e-5),
        ("trainer.max_steps", "8", 8),
        ("trainer.max_steps", 1e3, 1000),
        ("trainer.max_steps", None, None),
        ("data.shuffle", "False", False),
        ("optim.betas", [0, "0.5"], [0.0, 0.5]),
        ("adapter.target_modules", None, None),
        ("evaluate.prompts", ["a"], ["a"]),
    ],
)
def test_what_means_the_right_type_is_taken(name: str, value: object, becomes: object) -> None:
    result = convert(TABLE[name], value)
    assert result == becomes and type(result) is type(becomes)


@pytest.mark.parametrize(
    "name", [name for name, key in TABLE.items() if key.hint not in (str, str | None, dict[str, str])]
)
def test_every_key_that_is_no_text_refuses_a_text_and_says_what_to_write(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        convert(TABLE[name], "no such thing")
    message = str(caught.value)
    assert message.startswith(f"{name}=no such thing is n") and (
        "write for instance" in message or "did you" in message
    )


@pytest.mark.parametrize("value", [0, 0.0, "0", "0.0"])
def test_the_number_behind_auto_is_not_taken_for_it(value: object) -> None:
    assert convert(TABLE["trainer.max_epochs"], "auto") == 0
    with pytest.raises(RecipeError, match="must be above 0: write a number, or trainer.max_epochs=auto"):
        convert(TABLE["trainer.max_epochs"], value)


def test_a_list_of_files_stands_in_place_of_one_and_keys_hold_text() -> None:
    assert convert(TABLE["data.path"], ["a.csv", "b,c.csv"]) == '["a.csv", "b,c.csv"]'
    assert convert(TABLE["data.path"], ["a.csv"]) == "a.csv"
    assert convert(TABLE["data.columns"], {"prompt": 2024}) == {"prompt": "2024"}
    with pytest.raises(RecipeError, match="model.path"):
        convert(TABLE["model.path"], ["a", "b"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", True),
        ("seed", 1.5),
        ("seed", "nan"),
        ("seed", float("inf")),
        ("seed", [1]),
        ("seed", None),
        ("optim.lr", {}),
    ],
)
def test_nothing_is_rounded_or_guessed(name: str, value: object) -> None:
    with pytest.raises(RecipeError, match=name):
        convert(TABLE[name], value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(2e-5, "2e-5"), (2e-4, "2e-4"), (0.01, "0.01"), (3.0, "3"), (0.1234567891, "0.1234567891"), (None, "null")]
    + [(True, "true"), ([0.9, None], "[0.9,null]"), (0.0, "0"), (-1e-6, "-1e-6")],
)
def test_values_are_shown_as_users_type_them(value: object, text: str) -> None:
    assert format_value(value) == text


def test_types_are_named_in_words() -> None:
    assert type_name(TABLE["trainer.max_steps"].hint) == "whole number or null"
    assert type_name(TABLE["optim.betas"].hint) == "list of floats"
    assert type_name(TABLE["trainer.precision"].hint) == "auto, fp32, bf16"


@pytest.mark.parametrize(
    ("word", "means"),
    [("optim.lrr", "optim.lr"), ("LR", "optim.lr"), ("max-steps", "trainer.max_steps"), ("qqq", None)],
)
def test_the_nearest_word(word: str, means: str | None) -> None:
    assert nearest(word, TABLE) == means


def test_a_rule_about_a_faulty_key_is_recognised() -> None:
    faults = Faults()
    assert not faults.mention("optim.lr=0 is wrong")
    faults.add("...", "optim.lr", "a")
    assert faults.mention("optim.lr=0 must be above 0") and faults.mention("give optim.lr")
    assert not faults.mention("a rule") and not faults.mention("optim.lrx=0") and not faults.mention("my.optim.lr=0")


@pytest.mark.parametrize(
    "text",
    [
        "klant (1).csv",
        "a,b",
        "it's",
        'say "hi"',
        "c:\\x",
        "ends\\",
        'a\\"b',
        'a\\\\"',
        "a=b [x] {y}",
        "$x",
        "#1: 5 %",
        " ",
        "",
    ],
)
def test_quoted_texts_are_read_back_as_they_are(text: str) -> None:
    assert OverridesParser.create().parse_override(f"data.path={quoted(text)}").value() == text
