"""The assistant's turns are found in what a model's own template writes, or the template is refused."""

from collections.abc import Callable
from typing import Any

import pytest

from aitrain.data.chat_template import ChatTemplate
from aitrain.data.conversation import Conversation
from aitrain.errors import DataError

Make = Callable[..., Any]


def talk(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": system}] if system is not None else []
    return messages + [
        {"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(contents)
    ]


def learned(tokenizer: Any, messages: list[dict[str, Any]]) -> list[str]:
    rendered = ChatTemplate(tokenizer).render(Conversation(messages), "a.jsonl:1")
    assert rendered.text == tokenizer.apply_chat_template(messages, tokenize=False)
    return [rendered.text[span.begin : span.end] for span in rendered.spans]


PARTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}BODY{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    "body",
    [
        "{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}",
        "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}",
        "{%- generation -%}{{ m['content'] }}{%- endgeneration -%}{{ '<|im_end|>\n' }}",
    ],
)
def test_generation_blocks_wherever_they_end(small_tokenizer: Make, body: str) -> None:
    tokenizer = small_tokenizer("chatml", template=PARTS.replace("BODY", body))
    assert learned(tokenizer, talk("Yes.", " Yes.\n", "x", "b<|im_end|>")) == [
        " Yes.\n<|im_end|>",
        "b<|im_end|><|im_end|>",
    ]


def test_generation_block_says_where_a_turn_begins(small_tokenizer: Make) -> None:
    body = "{{ 'Hm:' }}{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    tokenizer = small_tokenizer("chatml", template=PARTS.replace("BODY", body))
    assert learned(tokenizer, talk("a", "Yes.")) == ["Yes.<|im_end|>"]


def test_a_prompt_that_opens_a_thought(small_tokenizer: Make) -> None:
    """As in DeepSeek-R1's template: the prompt ends with <think>, finished answers are written without."""
    template = PARTS.replace("BODY", "{{ m['content'] + '<|im_end|>\n' }}").replace(
        "assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif"
    )
    tokenizer = small_tokenizer("chatml", template=template)
    assert learned(tokenizer, talk("a", "Yes.", "b", "<b>No.")) == ["Yes.<|im_end|>", "<b>No.<|im_end|>"]


@pytest.mark.parametrize(
    ("family", "template", "messages", "message"),
    [
        ("gemma", None, talk("a", "b", system="s"), "rejects this conversation: System role not supported"),
        ("chatml", PARTS.replace("BODY", "{{ m['content'] + '\n' }}"), talk("a", "b"), "never learn to stop"),
        ("chatml", PARTS.replace("BODY", "{{ m['content'] + '[END]' }}"), talk("a", "b"), "never learn to stop"),
        ("chatml", PARTS.replace("BODY", "{{ m['content'] + ' !<|im_end|>' }}"), talk("a", "b"), "ends message 2 with"),
        ("chatml", PARTS.replace("BODY", "<|im_end|>"), talk("a", "b"), "does not write each of the 1 answers once"),
        ("chatml", PARTS.replace("BODY", "{{ m['content'] + m['content'] + '<|im_end|>' }}"), talk("a", "b"),
         "does not write each of the 1 answers once"),
        ("chatml", PARTS.replace("BODY", "{{ m['content'] | upper + '<|im_end|>' }}"), talk("a", "b"),
         "does not write each of the 1 answers once"),
        ("chatml", PARTS.replace("BODY", "{{ m['content'] | replace('b', 'c') + '<|im_end|>' }}"), talk("a", "b"),
         "changes the assistant's words"),
        ("chatml", PARTS.replace("{% if add_generation_prompt %}", "{% if false %}")
         .replace("BODY", "{{ m['content'] + '<|im_end|>' }}"), talk("a", "b"), "has no generation prompt"),
        ("chatml", PARTS.replace("assistant\n' }}{% endif", "bot\n' }}{% endif")
         .replace("BODY", "{{ m['content'] + '<|im_end|>' }}"), talk("a", "b"), "match the start of message 2"),
        ("chatml", PARTS.replace("BODY", "{% generation %}{% endgeneration %}{{ m['content'] + '<|im_end|>' }}"),
         talk("a", "b"), "do not match the assistant's 1 answers"),
        ("chatml", "{{ missing.key.key }}", talk("a", "b"), "rejects this conversation: 'missing' is undefined"),
        ("chatml", "{% if %}", talk("a", "b"), "rejects this conversation"),
        ("qwen3", None, talk("a", "<think>\nb\n</think>"), "contains only a thought"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_apart_is_refused(
    small_tokenizer: Make, family: str, template: str | None, messages: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        ChatTemplate(small_tokenizer(family, template=template)).render(Conversation(messages), "a.jsonl:3")
    assert str(caught.value).startswith("a.jsonl:3: ") and message in str(caught.value)


def test_no_chat_template_names_the_key(small_tokenizer: Make) -> None:
    tokenizer = small_tokenizer("chatml")
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"no chat template.*model\.chat_template=NAME"):
        ChatTemplate(tokenizer)


def test_several_templates_without_a_default(small_tokenizer: Make) -> None:
    tokenizer = small_tokenizer("chatml")
    tokenizer.chat_template = {"one": "{{ 1 }}", "two": "{{ 2 }}"}
    with pytest.raises(DataError, match=r"model\.chat_template=FILE"):
        ChatTemplate(tokenizer)
