"""Calls of tools inside conversations, and the tools that a conversation declares, in one format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from aitrain.data.fields import is_given
from aitrain.errors import DataError

Call = dict[str, Any]
"""`{"type": "function", "function": {"name": ..., "arguments": {...}}}`, as chat templates take it."""


def read_calls(value: Any, place: str) -> list[Call]:
    """Return the calls of an assistant's message.

    Args:
        value: The field `tool_calls`: a list, or its JSON text.
        place: Place of the message, for messages.

    Returns:
        The calls, with their arguments as objects; none if the field is empty.

    Raises:
        DataError: A call has no name, or its arguments are not a JSON object.
    """
    calls = []
    for number, call in enumerate(_list(value, "tool_calls", place)):
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"].strip():
            raise DataError(
                f"{place}: tool_calls[{number}] has no name: write "
                '{"function": {"name": "...", "arguments": {...}}}'
            )
        arguments = inner.get("arguments")
        if isinstance(arguments, str):
            arguments = _json(arguments, f"{place}: the arguments of tool_calls[{number}]") if arguments.strip() else {}
        if arguments is not None and not isinstance(arguments, dict):
            raise DataError(f"{place}: the arguments of tool_calls[{number}] are not a JSON object")
        named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        calls.append({**named, "type": "function", "function": {"name": inner["name"], "arguments": arguments or {}}})
    return calls


def read_tools(value: Any, where: str) -> list[dict[str, Any]]:
    """Return the tools that a record declares.

    Args:
        value: The field `tools`: a list of JSON schemas, or its JSON text.
        where: Place of the record, for messages.

    Returns:
        The schemas, for the chat template; none if the field is empty.

    Raises:
        DataError: It is not a list of objects with a name.
    """
    tools = _list(value, "tools", where)
    for number, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool_name(tool) is None:
            raise DataError(f"{where}: tools[{number}] is not the JSON schema of a function with a name")
    return tools


def tool_name(tool: dict[str, Any]) -> str | None:
    """Return the name of a declared tool.

    Args:
        tool: Its schema, with or without `function` around it.
    """
    inner = tool.get("function", tool)
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None


def with_text_arguments(calls: list[Call]) -> list[Call]:
    """Return calls with their arguments as JSON text, which some templates expect.

    Args:
        calls: From `read_calls`.
    """
    return [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in calls
    ]


def unsaid_arguments(call: Call, text: str) -> list[str]:
    """Return the names of the arguments whose values are missing from a text.

    Args:
        call: From `read_calls`.
        text: What the template wrote of the turn.
    """
    arguments = call["function"]["arguments"]
    return [name for name, value in arguments.items() if not all(_is_said(leaf, text) for leaf in _leaves(value))]


def _is_said(leaf: Any, text: str) -> bool:
    """Whether a text contains a value, literally, as JSON or in Python notation."""
    forms = {str(leaf), json.dumps(leaf), json.dumps(leaf, ensure_ascii=False), repr(leaf)}
    if isinstance(leaf, str):
        # inside of a quoted text; jinja's tojson also writes <, >, & and ' as \u003c and so on
        html = json.dumps(leaf)
        for sign in "<>&'":
            html = html.replace(sign, f"\\u{ord(sign):04x}")
        forms = {form.strip("\"'") if form != str(leaf) else form for form in (*forms, html)}
    return any(form in text for form in forms)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _list(value: Any, key: str, place: str) -> list[Any]:
    if isinstance(value, str) and value.strip():
        value = _json(value, f"{place}: {key!r}")
    if not is_given(value):
        return []
    if not isinstance(value, list):
        raise DataError(f"{place}: {key!r} is not a list")
    return value


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise DataError(f"{what} is text, but not JSON ({fault})") from None
