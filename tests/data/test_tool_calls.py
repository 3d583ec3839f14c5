"""Calls of tools in the forms that people write, and how they come out of the templates of model families."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from aitrain.config.data import RecordFormat
from aitrain.data.chat_template import ChatTemplate, Rendered
from aitrain.data.conversation import to_conversation
from aitrain.data.tool_calls import read_calls, read_tools
from aitrain.errors import DataError

Make = Callable[..., Any]
ARGUMENTS = {"city": 'Köln & <b> "x"', "days": 3, "exact": True}
CALL = {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {}}}


@pytest.mark.parametrize(
    "given",
    [
        [CALL],
        [{"function": {"name": "weather", "arguments": ARGUMENTS}}],
        [{"name": "weather", "arguments": ARGUMENTS}],
        [{"function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}],
        '[{"name": "weather", "arguments": {"city": "K\\u00f6ln & <b> \\"x\\"", "days": 3, "exact": true}}]',
    ],
)  # fmt: skip
def test_every_form_gives_the_same_call(given: Any) -> None:
    assert read_calls(given, "x") == [CALL]


@pytest.mark.parametrize("given", [None, [], "", "[]", "{}"])
def test_an_empty_field_is_no_call_and_no_tool(given: Any) -> None:
    assert read_calls(given, "x") == [] and read_tools(given, "x") == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{}], "tool_calls[0] has no name"),
        (["a"], "tool_calls[0] has no name"),
        ({"name": "a"}, "'tool_calls' is not a list"),
        ("{", "'tool_calls' is text, but not JSON"),
        ([{"name": "a", "arguments": "x"}], "the arguments of tool_calls[0] is text, but not JSON"),
        ([{"name": "a", "arguments": [1]}], "the arguments of tool_calls[0] are not a JSON object"),
    ],
)
def test_faults(given: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_calls(given, "a:1")
    assert message in str(caught.value)


def rendered(tokenizer: Any, **record: Any) -> Rendered:
    return ChatTemplate(tokenizer).render(to_conversation(record, RecordFormat.auto, "a:1"), "a:1")


def called(**more: Any) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], **more},
    ]


QWEN = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln & <b> \\"x\\"", "days": 3, "exact": true}}\n'
    "</tool_call><|im_end|>"
)


@pytest.mark.parametrize("family", ["qwen25", "qwen3"])
def test_an_assistant_turn_that_calls_a_tool_is_learned(small_tokenizer: Make, family: str) -> None:
    messages = [*called(), {"role": "tool", "content": "sun"}, {"role": "assistant", "content": "Sunny."}]
    one = rendered(small_tokenizer(family), messages=messages, tools="[]")
    learned = [one.text[span.begin : span.end] for span in one.spans]
    last = "<think>\n\n</think>\n\nSunny.<|im_end|>" if family == "qwen3" else "Sunny.<|im_end|>"
    assert learned == [QWEN, last] and not one.left_out
    text_arguments = {**CALL["function"], "arguments": json.dumps(ARGUMENTS)}
    again = rendered(small_tokenizer(family), messages=called(tool_calls=[{"function": text_arguments}]))
    assert again.text[again.spans[0].begin : again.spans[0].end].endswith(QWEN)


def test_the_template_gets_the_tools(small_tokenizer: Make) -> None:
    one = rendered(small_tokenizer("qwen25"), messages=called(), tools=[TOOL])
    assert "Tells it." in one.text and not one.left_out
    left = rendered(
        small_tokenizer("chatml"), messages=[called()[0], {"role": "assistant", "content": "b"}], tools=[TOOL]
    )
    assert left.left_out == ["the tool weather"]


def test_words_beside_a_call(small_tokenizer: Make) -> None:
    one = rendered(small_tokenizer("qwen25"), messages=called(content="Wait."))
    assert one.text[one.spans[0].begin : one.spans[0].end] == "Wait.\n" + QWEN
    # the template of Mistral writes the call and drops the words beside it
    assert rendered(small_tokenizer("mistral_v03"), messages=called(
        content="Wait.", tool_calls=[{**CALL, "id": "abcdefghi"}]
    )).left_out == ["the assistant's answer in message 2"]  # fmt: skip


def test_a_template_that_wants_arguments_as_text_gets_text(small_tokenizer: Make) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{{ m['content'] }}"
        "{% for c in m['tool_calls'] %}{{ c.function.name + ' ' }}{{ c.function.arguments }}{% endfor %}"
        "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    one = rendered(small_tokenizer("chatml", template=template), messages=called())
    assert one.text.endswith('weather {"city": "Köln & <b> \\"x\\"", "days": 3, "exact": true}<|im_end|>')
    assert not one.left_out


def test_a_template_without_calls_is_told_apart(small_tokenizer: Make) -> None:
    with pytest.raises(DataError, match="a:1: .*leaves out the tool call in message 2"):
        rendered(small_tokenizer("chatml"), messages=called())
    drops = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{{ m['content'] }}"
        "{% for c in m['tool_calls'] %}{{ c.function.name }}{% endfor %}{{ '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    one = rendered(small_tokenizer("chatml", template=drops), messages=called())
    assert one.left_out == [
        "the argument 'city' of weather in message 2",
        "the argument 'days' of weather in message 2",
        "the argument 'exact' of weather in message 2",
    ]
