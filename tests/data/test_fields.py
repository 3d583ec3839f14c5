"""Training marks mean one thing in every shape; a field that nothing reads is named, and refused where it matters."""

from typing import Any

import pytest

from aitrain.config.data import RecordFormat
from aitrain.data.conversation import to_conversation
from aitrain.data.fields import is_given
from aitrain.errors import DataError

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def trained(record: dict[str, Any]) -> list[bool]:
    messages = to_conversation(record, RecordFormat.auto, "x:1").messages
    assert not any(name in message for message in messages for name in ("weight", "loss", "training"))
    return [message.get("train", True) for message in messages if message["role"] == "assistant"]


def two_turns(shape: str, **mark: Any) -> dict[str, Any]:
    """The first answer carries the mark, the second none."""
    if shape == "messages":
        return {"messages": [USER, {**ANSWER, **mark}, USER, ANSWER]}
    if shape == "sharegpt":
        turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * 2
        return {"conversations": [turns[0], {**turns[1], **mark}, *turns[2:]]}
    assert shape == "completion"
    return {"prompt": [USER], "completion": [{**ANSWER, **mark}, USER, ANSWER]}


@pytest.mark.parametrize("shape", ["messages", "sharegpt", "completion"])
@pytest.mark.parametrize("name", ["train", "training", "weight", "loss"])
@pytest.mark.parametrize(("value", "learned"), [(False, False), (0, False), (0.0, False), (True, True), (1, True)])
def test_one_meaning_in_all_shapes(shape: str, name: str, value: Any, learned: bool) -> None:
    assert trained(two_turns(shape, **{name: value})) == [learned, True]


@pytest.mark.parametrize(
    "record",
    [{"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b"}],
    ids=["prompt_completion", "alpaca"],
)
@pytest.mark.parametrize(("mark", "learned"), [({"weight": 0}, False), ({"train": True}, True), ({}, True)])
def test_a_mark_beside_an_answer(record: dict[str, Any], mark: dict[str, Any], learned: bool) -> None:
    assert trained({**record, **mark}) == [learned]


def test_a_mark_inside_a_prompt_wins_over_the_rule_of_prompts() -> None:
    prompt = [USER, {**ANSWER, "train": True}, USER, ANSWER, USER]
    assert trained({"prompt": prompt, "completion": "c"}) == [True, False, True]


@pytest.mark.parametrize("shape", ["messages", "sharegpt", "completion"])
@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ({"train": "yes"}, "'train': 'yes', a training mark that is neither true nor false"),
        ({"weight": 0.5}, "'weight': 0.5, a training mark that is neither true nor false"),
        ({"train": True, "weight": 0}, "contradict each other"),
        ({"train_detail": [{"begin_offset": 0}]}, "'train_detail', a training mark that is not supported"),
        ({"loss_scale": 2}, "'loss_scale', a training mark that is not supported"),
    ],
)
def test_marks_that_are_not_understood_are_refused(shape: str, mark: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        trained(two_turns(shape, **mark))
    assert str(caught.value).startswith("x:1: ") and message in str(caught.value)


def test_a_mark_that_asks_for_the_users_words_or_for_no_turn_is_refused() -> None:
    with pytest.raises(DataError, match="marks the user's message as trained"):
        trained({"messages": [{**USER, "train": True}, ANSWER]})
    with pytest.raises(DataError, match=r"is outside the messages.*data\.ignore_fields=\[weight\]"):
        trained({"messages": [USER, ANSWER], "weight": 0})


SHAPES = {
    "messages": {"messages": [USER, ANSWER]},
    "prompt_completion": {"prompt": "a", "completion": "b"},
    "alpaca": {"instruction": "a", "output": "b"},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "field",
    [{"images": ["a.png"]}, {"rejected": "c"}, {"context": "c"}, {"system_prompt": "s"}, {"label": True}],
)  # fmt: skip
def test_a_field_that_other_tools_train_on_is_refused(shape: str, field: dict[str, Any]) -> None:
    [name] = field
    with pytest.raises(DataError, match=rf"x:1: '{name}' would not be used.*data\.ignore_fields=\[{name}\]"):
        to_conversation({**SHAPES[shape], **field}, RecordFormat.auto, "x:1")
    accepted = to_conversation({**SHAPES[shape], **field}, RecordFormat.auto, "x:1", None, [name])
    assert accepted.unused == [name]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mere_note_is_named(shape: str) -> None:
    record = {**SHAPES[shape], "id": 7, "source": "web", "label": "sport", "images": [], "note": None}
    assert to_conversation(record, RecordFormat.auto, "x:1").unused == ["id", "source", "label"]


def test_what_counts_as_given() -> None:
    assert [is_given(value) for value in (None, "", [], {}, "[]", "{}")] == [False] * 6
    assert [is_given(value) for value in (0, False, " ", "a", [0])] == [True] * 5
