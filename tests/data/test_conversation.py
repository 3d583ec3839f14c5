"""Four shapes of records give the same conversation; what fits none is refused with its place."""

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from aitrain.config.data import RecordFormat
from aitrain.data.conversation import Message, to_conversation
from aitrain.data.records import read_records
from aitrain.errors import DataError

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
AUTO = RecordFormat.auto


def to_messages(record: dict[str, Any], format: RecordFormat, where: str, system_prompt: str | None) -> list[Message]:
    return to_conversation(record, format, where, system_prompt).messages


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": what} for who, what in pairs]


@pytest.mark.parametrize(
    ("shape", "record", "expected"),
    [
        ("messages", {"messages": [SYSTEM, USER, ASSISTANT], "id": 3}, [SYSTEM, USER, ASSISTANT]),
        ("messages", {"messages": [USER, {**ASSISTANT, "name": None}]}, [USER, ASSISTANT]),
        ("messages", {"messages": '[{"role": "user", "content": "Hi"}]'}, [USER]),  # a CSV cell
        ("prompt_completion", {"prompt": "Hi", "completion": "Hello"}, [USER, ASSISTANT]),
        ("prompt_completion", {"prompt": "[1, 2]", "completion": "Hello"},
         [{"role": "user", "content": "[1, 2]"}, ASSISTANT]),
        ("prompt_completion", {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
        ("prompt_completion", {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]},
         [USER, {**ASSISTANT, "train": False}, USER, ASSISTANT]),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello"}, [USER, ASSISTANT]),
        ("alpaca", {"instruction": "Hi", "input": None, "output": "Hello"}, [USER, ASSISTANT]),
        ("alpaca", {"instruction": "Add", "input": "1, 2", "output": "Hello", "system": "Be brief."},
         [SYSTEM, {"role": "user", "content": "Add\n\n1, 2"}, ASSISTANT]),
        ("sharegpt", {"conversations": turns(("system", "Be brief."), ("human", "Hi"), ("gpt", "Hello"))},
         [SYSTEM, USER, ASSISTANT]),
        ("sharegpt", {"conversations": turns(("human", "Hi"), ("gpt", "Hello")), "system": "Be brief."},
         [SYSTEM, USER, ASSISTANT]),
    ],
)  # fmt: skip
def test_shapes(shape: str, record: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert to_messages(record, AUTO, "a.jsonl:1", None) == expected
    assert to_messages(record, RecordFormat[shape], "a.jsonl:1", None) == expected


EARLIER = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, ASSISTANT]},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"instruction": "Hi", "output": "Hello"},
        {"conversations": turns(("human", "Hi"), ("gpt", "Hello"))},
    ],
    ids=["messages", "prompt_completion", "prompt_list", "alpaca", "sharegpt"],
)
def test_a_system_turn_beside_the_conversation(record: dict[str, Any]) -> None:
    assert to_messages({**record, "system": "Be brief."}, AUTO, "a", None) == [SYSTEM, USER, ASSISTANT]
    assert to_messages({**record, "system": "Be brief."}, AUTO, "a", "Another.") == [SYSTEM, USER, ASSISTANT]
    for empty in ("", None):
        assert to_messages({**record, "system": empty}, AUTO, "a", None) == [USER, ASSISTANT]


def test_two_system_turns_that_contradict_each_other() -> None:
    record = {"messages": [SYSTEM, USER, ASSISTANT], "system": "Be brief."}
    assert to_messages(record, AUTO, "a", None) == [SYSTEM, USER, ASSISTANT]
    with pytest.raises(DataError, match="'system' differs from the system message in the conversation"):
        to_messages({**record, "system": "Be long."}, AUTO, "a", None)


@pytest.mark.parametrize(
    "history", [[["1+1", "2"]], '[["1+1", "2"]]', EARLIER], ids=["pairs", "a CSV cell", "messages"]
)
@pytest.mark.parametrize("record", [{"instruction": "Hi", "output": "Hello"}, {"prompt": "Hi", "completion": "Hello"}])
def test_earlier_turns_beside_a_question(record: dict[str, Any], history: Any) -> None:
    found = to_messages({**record, "history": history, "system": "Be brief."}, AUTO, "a", None)
    assert found == [SYSTEM, *EARLIER, USER, ASSISTANT]
    assert to_messages({**record, "history": []}, AUTO, "a", None) == [USER, ASSISTANT]


@pytest.mark.parametrize("history", [[["1+1"]], [["1+1", 2]], ["1+1"], "no json", {"a": 1}])
def test_a_history_that_is_not_understood(history: Any) -> None:
    with pytest.raises(DataError, match="a: "):
        to_messages({"instruction": "Hi", "output": "Hello", "history": history}, AUTO, "a", None)


def test_tool_messages_are_kept() -> None:
    tool = {"role": "tool", "content": "42"}
    messages = [USER, ASSISTANT, tool, tool, ASSISTANT]
    assert to_messages({"messages": messages}, AUTO, "a", None) == messages


def test_the_system_prompt_goes_before_conversations_without_one() -> None:
    assert to_messages({"messages": [USER, ASSISTANT]}, AUTO, "a", "Be brief.") == [SYSTEM, USER, ASSISTANT]
    own = {"role": "system", "content": "Be long."}
    assert to_messages({"messages": [own, USER]}, AUTO, "a", "Be brief.") == [own, USER]


def test_a_conversation_that_ends_with_the_user_is_kept() -> None:
    assert to_messages({"messages": [USER]}, AUTO, "a", None) == [USER]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, "the record has no keys, which fit none of the four formats"),
        ({"body": "a", "note": "b"}, "keys here are 'body', 'note', which fit none of the four formats"),
        (
            {"Vraag": "a", "réponse (1)": "b"},
            "add: data.columns.prompt=Vraag 'data.columns.completion=\"réponse (1)\"'",
        ),
        ({"berichten": []}, "To read 'berichten' as the messages, add: data.columns.messages=berichten"),
        ({"messages": None, "text": "a"}, "fit none"),
        ({"messages": [USER], "prompt": "a", "completion": "b"}, "fit messages and prompt_completion"),
        ({"messages": []}, "'messages' must be a list with at least one message"),
        ({"messages": {"role": "user"}}, "'messages' must be a list"),
        ({"messages": "no json"}, "'messages' is text, but not a JSON list"),
        ({"messages": ["a"]}, "messages[0] has no 'role' and 'content'"),
        ({"messages": turns(("human", "a"))}, "rename the key to 'conversations'"),
        ({"conversations": [USER]}, "rename the key 'conversations' to 'messages'"),
        ({"conversations": turns(("bot", "a"))}, "conversations[0] is from 'bot'"),
        ({"messages": [{"role": "human", "content": "a"}]}, "messages[0] has the role 'human'"),
        ({"messages": [{"role": "user", "content": 3}]}, "user's message is int, not text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, "is list, not text"),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [{}]}]}, "messages[1]: tool_calls[0] has no name"),
        ({"messages": [USER, {**ASSISTANT, "train": "no"}]}, "neither true nor false"),
        ({"messages": [USER, ASSISTANT], "tools": [{}]}, "tools[0] is not the JSON schema of a function with a name"),
        ({"messages": [ASSISTANT]}, "begins with one of the assistant (message 1); it must be system or user"),
        ({"messages": [USER, USER]}, "has after the user's message one of the user (message 2); it must be assistant"),
        ({"messages": [USER, ASSISTANT, ASSISTANT]}, "it must be user or tool"),
        ({"messages": [USER, SYSTEM]}, "one of the system (message 2)"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "the assistant's message 2 is empty"),
        ({"prompt": "a", "completion": ""}, "the assistant's message 2 is empty"),
        ({"instruction": 3, "output": "a"}, "'instruction' is int, not text"),
    ],
)
def test_faults(record: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as caught:
        to_messages(record, AUTO, "a.jsonl:7", None)
    assert str(caught.value).startswith("a.jsonl:7: ") and expected in str(caught.value)


def test_an_unknown_shape_is_answered_with_the_four_shapes() -> None:
    with pytest.raises(DataError) as caught:
        to_messages({"q": "a"}, AUTO, "a.jsonl:7", None)
    for shape in ("messages", "prompt_completion", "alpaca", "sharegpt"):
        assert f"data.format={shape}: {{" in str(caught.value)


def test_a_wrong_format_key_names_the_shape_it_wants() -> None:
    with pytest.raises(DataError, match="keys here are 'prompt', 'completion', but data.format=alpaca is written as"):
        to_messages({"prompt": "a", "completion": "b"}, RecordFormat.alpaca, "a", None)


def whole(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(where, record) for where, record in read_records(path) if isinstance(record, dict)]


def test_parquet_structs_and_csv_columns(tmp_path: Path) -> None:
    rows = [{"messages": [{**USER, "train": None}, {**ASSISTANT, "train": False}]}, {"messages": [USER, ASSISTANT]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [to_messages(record, AUTO, where, None) for where, record in whole(tmp_path / "a.parquet")]
    assert found == [[USER, {**ASSISTANT, "train": False}], [USER, ASSISTANT]]
    (tmp_path / "a.csv").write_text('instruction,input,output\nHi,,Hello\n"Hi",,Hello\n')
    found = [to_messages(record, AUTO, where, None) for where, record in whole(tmp_path / "a.csv")]
    assert found == [[USER, ASSISTANT]] * 2
