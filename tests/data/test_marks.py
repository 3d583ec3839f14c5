"""What a template leaves out is found for every role and field, and told in words."""

from collections.abc import Callable
from typing import Any

import pytest

from aitrain.config.data import RecordFormat
from aitrain.data.chat_template import ChatTemplate, Rendered
from aitrain.data.conversation import to_conversation

Make = Callable[..., Any]
STRIPS_THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'].split('</think>')[-1] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def rendered(tokenizer: Any, *messages: dict[str, Any]) -> Rendered:
    conversation = to_conversation({"messages": list(messages)}, RecordFormat.messages, "a:1")
    return ChatTemplate(tokenizer).render(conversation, "a:1")


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("family", "template", "messages", "left_out"),
    [
        ("chatml", STRIPS_THOUGHTS, [said("user", "2+2"), said("assistant", "<think>two twos</think>4")],
         "the assistant's thought in message 2"),
        ("chatml", None, [said("user", "a"), said("assistant", "b", reasoning_content="Hm")],
         "the assistant's reasoning_content in message 2"),
        ("qwen3", None, [said("user", "a"), said("assistant", "<think>Hm</think>b"), said("user", "c"),
                         said("assistant", "d")], "the assistant's thought in message 2"),
        ("mistral_v03", None, [said("system", "Be brief."), said("user", "a"), said("assistant", "b")],
         "the system's message in message 1"),
        ("chatml", None, [said("user", "a", name="Ann"), said("assistant", "b")], "the name of the user in message 1"),
        # one letter that stands elsewhere in the text
        ("chatml", "{% for m in messages if m['role'] != 'system' %}" + STRIPS_THOUGHTS.split("%}", 1)[1],
         [said("system", "a"), said("user", "banana"), said("assistant", "b")], "the system's message in message 1"),
    ],
)  # fmt: skip
def test_what_is_left_out_is_told(
    small_tokenizer: Make, family: str, template: str | None, messages: list[dict[str, Any]], left_out: str
) -> None:
    assert rendered(small_tokenizer(family, template=template), *messages).left_out == [left_out]


def test_what_is_written_is_not_told(small_tokenizer: Make) -> None:
    thought = said("assistant", "b", reasoning_content="Hm")
    assert not rendered(small_tokenizer("qwen3"), said("system", "s"), said("user", "a"), thought).left_out
    named = "{% for m in messages %}{{ m['name'] }}" + STRIPS_THOUGHTS.split("%}", 1)[1]
    one = rendered(small_tokenizer("chatml", template=named), said("user", "a", name="Ann"), said("assistant", "b"))
    assert not one.left_out and not one.unused


def test_notes_beside_a_message_are_named(small_tokenizer: Make) -> None:
    one = rendered(
        small_tokenizer("chatml"), said("user", "a", time="12:00", tokens=3), said("assistant", "b", id="m2")
    )
    assert not one.left_out and one.unused == ["time (of a message)", "tokens (of a message)", "id (of a message)"]


def test_a_template_that_looks_into_what_users_say_is_still_read(small_tokenizer: Make) -> None:
    looks = "{% if 'secret' in messages[0]['content'] %}{{ 'A secret. ' }}{% endif %}" + STRIPS_THOUGHTS
    one = rendered(small_tokenizer("chatml", template=looks), said("user", "my secret"), said("assistant", "b"))
    assert one.text.startswith("A secret. ") and not one.left_out
    assert [one.text[span.begin : span.end] for span in one.spans] == ["b<|im_end|>"]
