"""Converts records of four formats to conversations: lists of messages with role and content."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from aitrain.config.data import RecordFormat
from aitrain.data.column_names import proposed, words
from aitrain.data.fields import MARKS, TRAIN, UNREAD_MARKS, is_given, training_mark, unused_fields
from aitrain.data.tool_calls import read_calls, read_tools
from aitrain.errors import DataError

Message = dict[str, Any]
Record = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """The content of one record."""

    messages: list[Message]
    """Messages with `role` (system, user, assistant or tool) and `content`, in the usual order of a dialogue. `"train":
    False` excludes an assistant's message from the loss; `tool_calls` holds its tool calls."""

    tools: list[dict[str, Any]] = field(default_factory=list)
    """JSON schemas of the tools that the conversation declares, for the chat template."""

    unused: list[str] = field(default_factory=list)
    """Unused fields of the record."""


SHAPES = {
    RecordFormat.messages: (
        '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
    ),
    RecordFormat.prompt_completion: '{"prompt": "...", "completion": "..."}',
    RecordFormat.alpaca: '{"instruction": "...", "input": "", "output": "..."}',
    RecordFormat.sharegpt: '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
}
"""The four formats with an example each."""

_NEEDED = {
    RecordFormat.messages: ("messages",),
    RecordFormat.prompt_completion: ("prompt", "completion"),
    RecordFormat.alpaca: ("instruction", "output"),
    RecordFormat.sharegpt: ("conversations",),
}
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
}
_ROLES = ("system", "user", "assistant", "tool")
_READ = {
    RecordFormat.messages: ("messages", "system", "tools"),
    RecordFormat.prompt_completion: ("prompt", "completion", "system", "history", "tools"),
    RecordFormat.alpaca: ("instruction", "input", "output", "system", "history", "tools"),
    RecordFormat.sharegpt: ("conversations", "system", "tools"),
}
"""Fields that are read, by format."""

_ONE_ANSWER = (RecordFormat.prompt_completion, RecordFormat.alpaca)
"""Formats whose record is one answer, so that a training mark may be on the record."""
_AFTER = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""Which role may follow which."""


def to_conversation(
    record: Record,
    format: RecordFormat,
    where: str,
    system_prompt: str | None = None,
    ignored: Iterable[str] = (),
) -> Conversation:
    """Turn one record into a conversation.

    Args:
        record: One record of a data file.
        format: Its shape; `auto` looks at the keys.
        where: Place of the record, for messages ("train.jsonl:17").
        system_prompt: System message for a conversation that has none, or None.
        ignored: Fields that the user ignores on purpose (`data.ignore_fields`).

    Returns:
        The conversation. In prompt/completion records the assistant's messages inside the prompt carry `"train": False`
        unless they are marked: only the completion is learned.

    Raises:
        DataError: The record has another shape, a role is unknown or out of order, an answer is empty, a training mark
            is not understood, or other tools would train on a field that is not read.
    """
    ignored = frozenset(ignored)
    shape = _detect(record, where) if format is RecordFormat.auto else format
    missing = [key for key in _NEEDED[shape] if record.get(key) is None]
    if missing:
        raise DataError(f"{where}: {_keys(record)}, but data.format={shape.name} is written as {SHAPES[shape]}")
    read = {key: value for key, value in record.items() if key not in ignored}
    mark = _mark_of_record(read, shape, where)
    read = {key: record[key] for key in _READ[shape] if key in read or key in _NEEDED[shape]}
    turn_fields: dict[str, None] = {}
    messages = [_checked_marks(message, where, ignored, turn_fields) for message in _CONVERT[shape](read, where, mark)]
    messages = [*_system(read, messages, where), *messages]
    if system_prompt is not None and (not messages or messages[0]["role"] != "system"):
        messages = [{"role": "system", "content": system_prompt}, *messages]
    _check_order(messages, where)
    unused = unused_fields(record, (*_READ[shape], *(MARKS if mark is not None else ())), ignored, where)
    tools = read_tools(read.get("tools"), where)
    return Conversation(messages, tools, [*unused, *turn_fields])


def _mark_of_record(record: Record, shape: RecordFormat, where: str) -> bool | None:
    """Return the training mark of a record with one answer; on a list of messages it would be ambiguous."""
    if shape in _ONE_ANSWER:
        return training_mark(record, "assistant", f"{where}: the record")
    given = [name for name in (*MARKS, *UNREAD_MARKS) if is_given(record.get(name))]
    if given:
        raise DataError(
            f"{where}: the training mark {given[0]!r} is outside the messages, so it is not clear which ones it "
            f"applies to: put it on the messages, or add data.ignore_fields=[{given[0]}]"
        )
    return None


def _checked_marks(message: Message, where: str, ignored: Iterable[str], unused: dict[str, None]) -> Message:
    """Rename a message's training mark, and remove the fields that are ignored on purpose."""
    left = [name for name in message if name in ignored and name not in ("role", "content")]
    unused.update((f"{name} (of a message)", None) for name in left)
    message = {name: part for name, part in message.items() if name not in left}
    mark = training_mark(message, message["role"], f"{where}: a message of the {message['role']}")
    message = {name: part for name, part in message.items() if name not in (*MARKS, *UNREAD_MARKS)}
    if mark is None or message["role"] != "assistant":
        return message
    return {**message, TRAIN: mark}


def _detect(record: Record, where: str) -> RecordFormat:
    found = [shape for shape, needed in _NEEDED.items() if all(record.get(key) is not None for key in needed)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(shape.name for shape in found)
        raise DataError(f"{where}: {_keys(record)}, which fit {names}: write data.format={found[0].name} or the other")
    there = [name for name, value in record.items() if value is not None]
    guess = proposed(there, ("prompt", "completion")) or proposed(there, ("messages",))
    if guess:
        told = " and ".join(f"{column!r} as the {name}" for name, column in guess.items())
        advice = f"To read {told}, add: {words(guess)}"
        raise DataError(f"{where}: {_keys(record)}, which are not names that aitrain recognises\n{advice}")
    shapes = "\n".join(f"  data.format={shape.name}: {example}" for shape, example in SHAPES.items())
    name_them = "To read your own columns, add: data.columns.prompt=COLUMN data.columns.completion=COLUMN"
    raise DataError(f"{where}: {_keys(record)}, which fit none of the four formats:\n{shapes}\n{name_them}")


def _keys(record: Record) -> str:
    return f"keys here are {', '.join(map(repr, record))}" if record else "the record has no keys"


def _from_messages(record: Record, where: str, mark: bool | None) -> list[Message]:
    return _message_list(record["messages"], "messages", where)


def _from_prompt_completion(record: Record, where: str, mark: bool | None) -> list[Message]:
    if isinstance(record["prompt"], str) and not _is_json_list(record["prompt"]):
        prompt = [_message("user", record["prompt"], where)]
    else:
        prompt = _message_list(record["prompt"], "prompt", where)
    if isinstance(record["completion"], str) and not _is_json_list(record["completion"]):
        completion = [_message("assistant", record["completion"], where)]
    else:
        completion = _message_list(record["completion"], "completion", where)
    prompt = [_with_mark(message, False) for message in prompt]
    return [*_history(record, where), *prompt, *(_with_mark(message, mark) for message in completion)]


def _with_mark(message: Message, mark: bool | None) -> Message:
    """Give an assistant's message a training mark unless it has one of its own."""
    own = any(message.get(name) is not None for name in MARKS)
    return message if message["role"] != "assistant" or own or mark is None else {**message, TRAIN: mark}


def _from_alpaca(record: Record, where: str, mark: bool | None) -> list[Message]:
    for key in ("instruction", "input", "output", "system"):
        if record.get(key) is not None and not isinstance(record[key], str):
            raise DataError(f"{where}: {key!r} is {type(record[key]).__name__}, not text")
    question = record["instruction"]
    if record.get("input"):
        question += "\n\n" + record["input"]
    answer = _with_mark(_message("assistant", record["output"], where), mark)
    return [*_history(record, where), _message("user", question, where), answer]


def _from_sharegpt(record: Record, where: str, mark: bool | None) -> list[Message]:
    turns = _list(record["conversations"], "conversations", where)
    messages = []
    for number, turn in enumerate(turns):
        calls = isinstance(turn, dict) and is_given(turn.get("tool_calls"))
        if not isinstance(turn, dict) or "from" not in turn or not ("value" in turn or calls):
            hint = ""
            if isinstance(turn, dict) and "role" in turn and "content" in turn:
                hint = ": this is the shape of `messages`, so rename the key 'conversations' to 'messages'"
            raise DataError(f"{where}: conversations[{number}] has no 'from' and 'value'{hint}")
        if not isinstance(turn["from"], str) or turn["from"] not in _SHAREGPT_ROLES:
            known = ", ".join(_SHAREGPT_ROLES)
            raise DataError(f"{where}: conversations[{number}] is from {turn['from']!r}: use one of {known}")
        others = {name: part for name, part in turn.items() if name not in ("from", "value") and part is not None}
        place = f"{where}: conversations[{number}]"
        messages.append(_whole_message(_SHAREGPT_ROLES[turn["from"]], turn.get("value"), others, place))
    return messages


_CONVERT = {
    RecordFormat.messages: _from_messages,
    RecordFormat.prompt_completion: _from_prompt_completion,
    RecordFormat.alpaca: _from_alpaca,
    RecordFormat.sharegpt: _from_sharegpt,
}


def _system(record: Record, messages: list[Message], where: str) -> list[Message]:
    """Return the system message given outside the messages."""
    if not is_given(record.get("system")):
        return []
    message = _message("system", record["system"], where)
    if not messages or messages[0]["role"] != "system":
        return [message]
    if messages[0]["content"] != message["content"]:
        raise DataError(f"{where}: 'system' differs from the system message in the conversation: keep one of them")
    return []


def _history(record: Record, where: str) -> list[Message]:
    """Return the history of a question: pairs of question and answer, or messages."""
    value = record.get("history")
    if not is_given(value):
        return []
    turns = _list(value, "history", where)
    if all(isinstance(turn, dict) for turn in turns):
        return _message_list(turns, "history", where)
    messages = []
    for number, pair in enumerate(turns):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f'{where}: history[{number}] must be a pair: ["question", "answer"]')
        messages += [_message("user", pair[0], where), _message("assistant", pair[1], where)]
    return messages


def _is_json_list(text: str) -> bool:
    """Whether a CSV cell holds a list of messages; a prompt that only begins with a bracket is text."""
    return text.lstrip().startswith("[{") and text.rstrip().endswith("}]") and '"role"' in text


def _list(value: Any, key: str, where: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as fault:
            raise DataError(f"{where}: {key!r} is text, but not a JSON list of messages ({fault})") from None
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {key!r} must be a list with at least one message")
    return value


def _message_list(value: Any, key: str, where: str) -> list[Message]:
    messages = []
    for number, item in enumerate(_list(value, key, where)):
        place = f"{where}: {key}[{number}]"
        # Parquet gives every struct every field, with null where a row had none.
        item = {name: part for name, part in item.items() if part is not None} if isinstance(item, dict) else item
        calls = isinstance(item, dict) and is_given(item.get("tool_calls"))
        if not isinstance(item, dict) or "role" not in item or not ("content" in item or calls):
            hint = ""
            if isinstance(item, dict) and "from" in item:
                hint = ": this is the shape of `conversations`, so rename the key to 'conversations'"
            raise DataError(f"{place} has no 'role' and 'content'{hint}")
        if item["role"] not in _ROLES:
            raise DataError(f"{place} has the role {item['role']!r}: use one of {', '.join(_ROLES)}")
        others = {name: part for name, part in item.items() if name not in ("role", "content")}
        messages.append(_whole_message(item["role"], item.get("content"), others, place))
    return messages


def _whole_message(role: str, content: Any, others: dict[str, Any], place: str) -> Message:
    """Return a message with all its fields; a tool call may replace its content."""
    calls = read_calls(others.pop("tool_calls", None), place)
    if calls and role != "assistant":
        raise DataError(f"{place}: the {role}'s message has 'tool_calls', but only the assistant calls tools")
    message = _message(role, "" if content is None and calls else content, place)
    return {**others, **message, **({"tool_calls": calls} if calls else {})}


def _message(role: str, content: Any, where: str) -> Message:
    if not isinstance(content, str):
        kind = "null" if content is None else type(content).__name__
        raise DataError(f"{where}: the content of the {role}'s message is {kind}, not text")
    return {"role": role, "content": content}


def _check_order(messages: list[Message], where: str) -> None:
    before = "start"
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        if role not in _AFTER[before]:
            allowed = " or ".join(_AFTER[before])
            place = "begins with" if before == "start" else f"has after the {before}'s message"
            raise DataError(
                f"{where}: the conversation {place} one of the {role} (message {number}); it must be {allowed}"
            )
        if role == "assistant" and not message["content"].strip() and not message.get("tool_calls"):
            raise DataError(
                f"{where}: the assistant's message {number} is empty: write an answer, or remove the record"
            )
        before = role
