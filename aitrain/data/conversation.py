"""Records of four shapes become conversations of one: a list of messages with role and content."""

from __future__ import annotations

import json
from typing import Any

from aitrain.config.data import RecordFormat
from aitrain.errors import DataError

Message = dict[str, Any]
Record = dict[str, Any]

TRAIN = "train"
"""Key of an assistant's message: `false` takes it out of the loss."""

SHAPES = {
    RecordFormat.messages: (
        '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
    ),
    RecordFormat.prompt_completion: '{"prompt": "...", "completion": "..."}',
    RecordFormat.alpaca: '{"instruction": "...", "input": "", "output": "..."}',
    RecordFormat.sharegpt: '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
}
"""The four shapes with an example each."""

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
_AFTER = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""Which role may follow which."""


def to_messages(record: Record, format: RecordFormat, where: str, system_prompt: str | None) -> list[Message]:
    """Turn one record into a conversation.

    Args:
        record: One record of a data file.
        format: Its shape; `auto` looks at the keys.
        where: Place of the record, for messages ("train.jsonl:17").
        system_prompt: System message for a conversation that has none, or None.

    Returns:
        Messages with `role` (system, user, assistant or tool) and `content`, in an order every dialogue has. The
        assistant's messages inside a prompt carry `"train": False`: only the completion is learned.

    Raises:
        DataError: The record has another shape, a role is unknown or out of order, or an answer is empty.
    """
    shape = _detect(record, where) if format is RecordFormat.auto else format
    missing = [key for key in _NEEDED[shape] if record.get(key) is None]
    if missing:
        raise DataError(f"{where}: {_keys(record)}, but data.format={shape.name} is written as {SHAPES[shape]}")
    if record.get("tools"):
        raise DataError(f"{where}: 'tools' cannot be given to the chat template: write them into the system message")
    messages = _CONVERT[shape](record, where)
    if system_prompt is not None and (not messages or messages[0]["role"] != "system"):
        messages = [{"role": "system", "content": system_prompt}, *messages]
    _check_order(messages, where)
    return messages


def _detect(record: Record, where: str) -> RecordFormat:
    found = [shape for shape, needed in _NEEDED.items() if all(record.get(key) is not None for key in needed)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(shape.name for shape in found)
        raise DataError(f"{where}: {_keys(record)}, which fit {names}: write data.format={found[0].name} or the other")
    shapes = "\n".join(f"  data.format={shape.name}: {example}" for shape, example in SHAPES.items())
    raise DataError(f"{where}: {_keys(record)}, which fit none of the four shapes:\n{shapes}")


def _keys(record: Record) -> str:
    return f"keys here are {', '.join(map(repr, record))}" if record else "the record has no keys"


def _from_messages(record: Record, where: str) -> list[Message]:
    return _message_list(record["messages"], "messages", where)


def _from_prompt_completion(record: Record, where: str) -> list[Message]:
    if isinstance(record["prompt"], str) and not _is_json_list(record["prompt"]):
        prompt = [_message("user", record["prompt"], where)]
    else:
        prompt = _message_list(record["prompt"], "prompt", where)
    if isinstance(record["completion"], str) and not _is_json_list(record["completion"]):
        completion = [_message("assistant", record["completion"], where)]
    else:
        completion = _message_list(record["completion"], "completion", where)
    return [{**message, TRAIN: False} if message["role"] == "assistant" else message for message in prompt] + completion


def _from_alpaca(record: Record, where: str) -> list[Message]:
    for key in ("instruction", "input", "output", "system"):
        if record.get(key) is not None and not isinstance(record[key], str):
            raise DataError(f"{where}: {key!r} is {type(record[key]).__name__}, not text")
    question = record["instruction"]
    if record.get("input"):
        question += "\n\n" + record["input"]
    return _system(record, where) + [_message("user", question, where), _message("assistant", record["output"], where)]


def _from_sharegpt(record: Record, where: str) -> list[Message]:
    turns = _list(record["conversations"], "conversations", where)
    messages = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            hint = ""
            if isinstance(turn, dict) and "role" in turn and "content" in turn:
                hint = ": this is the shape of `messages`, so rename the key 'conversations' to 'messages'"
            raise DataError(f"{where}: conversations[{number}] has no 'from' and 'value'{hint}")
        if turn["from"] not in _SHAREGPT_ROLES:
            known = ", ".join(_SHAREGPT_ROLES)
            raise DataError(f"{where}: conversations[{number}] is from {turn['from']!r}: use one of {known}")
        messages.append(_message(_SHAREGPT_ROLES[turn["from"]], turn["value"], where))
    return (_system(record, where) if not messages or messages[0]["role"] != "system" else []) + messages


_CONVERT = {
    RecordFormat.messages: _from_messages,
    RecordFormat.prompt_completion: _from_prompt_completion,
    RecordFormat.alpaca: _from_alpaca,
    RecordFormat.sharegpt: _from_sharegpt,
}


def _system(record: Record, where: str) -> list[Message]:
    return [_message("system", record["system"], where)] if record.get("system") else []


def _is_json_list(text: str) -> bool:
    """Whether a CSV cell holds a list of messages; a prompt that only begins with a bracket is text."""
    return text.lstrip().startswith("[{") and text.rstrip().endswith("}]") and '"role"' in text


def _list(value: Any, key: str, where: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as fault:
            raise DataError(f"{where}: {key!r} is text, but no JSON list of messages ({fault})") from None
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {key!r} must be a list with at least one message")
    return value


def _message_list(value: Any, key: str, where: str) -> list[Message]:
    messages = []
    for number, item in enumerate(_list(value, key, where)):
        place = f"{where}: {key}[{number}]"
        # Parquet gives every struct every field, with null where a row had none.
        item = {name: part for name, part in item.items() if part is not None} if isinstance(item, dict) else item
        if not isinstance(item, dict) or "role" not in item or "content" not in item:
            hint = ""
            if isinstance(item, dict) and "from" in item:
                hint = ": this is the shape of `conversations`, so rename the key to 'conversations'"
            raise DataError(f"{place} has no 'role' and 'content'{hint}")
        if item["role"] not in _ROLES:
            raise DataError(f"{place} has the role {item['role']!r}: use one of {', '.join(_ROLES)}")
        if item.get("tool_calls"):
            raise DataError(f"{place} has 'tool_calls': write the call into 'content' as the model shall say it")
        if not isinstance(item.get(TRAIN, True), bool):
            raise DataError(f"{place} has {TRAIN!r}: {item[TRAIN]!r}: write true or false")
        messages.append({**item, **_message(item["role"], item["content"], where)})
    return messages


def _message(role: str, content: Any, where: str) -> Message:
    if not isinstance(content, str):
        raise DataError(f"{where}: the content of the {role}'s message is {type(content).__name__}, not text")
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
        if role == "assistant" and not message["content"].strip():
            raise DataError(
                f"{where}: the assistant's message {number} is empty: write an answer or take the record out"
            )
        before = role
