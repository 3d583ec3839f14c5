"""Exactly the assistant's tokens and its end-of-turn are trained, for the chat templates of six model families.

What is expected is written by hand, as text: the runs of trained tokens, decoded.
"""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
from transformers import AddedToken

from aitrain.data.chat_template import ChatTemplate
from aitrain.data.conversation import Conversation
from aitrain.data.masking import Encoded, encode
from aitrain.errors import DataError, ModelError

Make = Callable[..., Any]
FAMILIES = ["llama3", "qwen25", "qwen3", "mistral_v03", "gemma", "chatml", "zephyr"]
TRIM = ["llama3", "gemma"]  # both ends; mistral_v03 trims too but puts a blank before
END = {
    "llama3": "<|eot_id|>",
    "qwen25": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "mistral_v03": "</s>",
    "gemma": "<end_of_turn>",
    "chatml": "<|im_end|>",
    "zephyr": "</s>",
}
NO_SYSTEM = ["gemma", "mistral_v03"]


def talk(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": system}] if system is not None else []
    return messages + [
        {"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(contents)
    ]


def encoded_one(tokenizer: Any, messages: list[dict[str, Any]], where: str) -> Encoded:
    rendered = ChatTemplate(tokenizer).render(Conversation(messages), where)
    [encoded] = encode(tokenizer, [(where, rendered)])
    if isinstance(encoded, DataError):
        raise encoded
    return encoded


def trained_runs(tokenizer: Any, encoded: Encoded) -> list[str]:
    assert len(encoded.ids) == len(encoded.trained)
    pairs = groupby(zip(encoded.ids, encoded.trained, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for trained, run in pairs if trained]


def learned(tokenizer: Any, messages: list[dict[str, Any]]) -> list[str]:
    encoded = encoded_one(tokenizer, messages, "a.jsonl:1")
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(encoded.ids) == whole
    return trained_runs(tokenizer, encoded)


def expected(family: str, *answers: str) -> list[str]:
    """The runs for answers without blanks around them."""
    if family == "mistral_v03":
        return [f" {answer}</s>" for answer in answers]
    if family == "qwen3":  # the template itself puts an empty thought before the last answer
        return [answer + "<|im_end|>" for answer in answers[:-1]] + [
            "<think>\n\n</think>\n\n" + answers[-1] + "<|im_end|>"
        ]
    return [answer + END[family] for answer in answers]


@pytest.fixture(params=[False, True], ids=["offsets", "trimmed_offsets"])
def trim(request: pytest.FixtureRequest) -> bool:
    """Byte-level tokenizers come in both kinds: with offsets over blanks, and with offsets that leave them out."""
    return bool(request.param)


CONVERSATIONS = {
    "one turn": ["Hello!", "Yes."],
    "several turns": ["Hello!", "I am well, thank you.", "What is the capital of France?", "Paris.", "And?", "No."],
    "unicode": [
        "Grüße 你好",
        "Grüße aus Köln, 你好世界 \U0001f600 naïve",
        "x",
        "e\u0301\u200d\U0001f469\u200d\U0001f680",
    ],
    "identical answers": ["One?", "Yes.", "Two?", "Yes."],
    "answers equal to questions": ["Yes.", "Yes.", "Yes.", "Yes."],
    "words of the template": ["user", "assistant", "model", "system", "\n\nassistant\n", "user\nassistant"],
    "headers as content": [
        "<|im_start|>assistant\nNo.<|im_end|>",
        "<|im_start|>user\nYes.<|im_end|>\n<|im_start|>assistant\nok",
        "<|start_header_id|>assistant<|end_header_id|>\n\nNo.<|eot_id|> [/INST] No.</s> <start_of_turn>model\n",
        "[INST] a [/INST] b </s> <|user|>\nc</s>\n<|assistant|>\n<|eot_id|><end_of_turn> done",
    ],
    "end of turn inside and at the end": ["a", "b<|im_end|></s><|eot_id|><end_of_turn>", "c", "d</s> e"],
    "blanks inside": ["a\n\n\nb", "one\n\n two   three\n\n\nfour"],
    "marks like our own": ["zq1answer;", "zq1answer; zqq3answer;", "zqq", "zq"],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_only_the_answers_are_trained(small_tokenizer: Make, family: str, name: str, trim: bool) -> None:
    contents = CONVERSATIONS[name]
    assert learned(small_tokenizer(family, trim), talk(*contents)) == expected(family, *contents[1::2])


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NO_SYSTEM])
def test_with_a_system_message(small_tokenizer: Make, family: str, trim: bool) -> None:
    messages = talk("Hello!", "Yes.", "x", "No.", system="Be brief. Yes.")
    assert learned(small_tokenizer(family, trim), messages) == expected(family, "Yes.", "No.")


@pytest.mark.parametrize("family", FAMILIES)
def test_blanks_around_an_answer(small_tokenizer: Make, family: str, trim: bool) -> None:
    tokenizer = small_tokenizer(family, trim)
    answers = [" \t Yes. \n", "  No.\n\n  "]
    runs = learned(tokenizer, talk(" Hello! ", answers[0], "\nx\n", answers[1]))
    if family in TRIM:
        assert runs == ["Yes." + END[family], "No." + END[family]]
    elif family == "mistral_v03":
        assert runs == [" Yes.</s>", " No.</s>"]
    elif family == "qwen3":
        assert runs == [answers[0] + "<|im_end|>", "<think>\n\n</think>\n\n" + answers[1] + "<|im_end|>"]
    else:
        assert runs == [answer + END[family] for answer in answers]


@pytest.mark.parametrize("family", ["qwen25", "chatml", "zephyr"])
def test_a_line_end_before_an_answer_is_the_assistants(small_tokenizer: Make, family: str) -> None:
    assert learned(small_tokenizer(family), talk("a", "\nYes.")) in (
        ["\nYes." + END[family]],
        ["\n\nYes." + END[family]],  # the tokenizer may merge it with the header's own line end
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_comes_before_an_answer_is_what_the_model_reads_when_used(small_tokenizer: Make, family: str) -> None:
    tokenizer = small_tokenizer(family)
    messages = talk("Hello!", "I am well.", "What?", "Yes.", "Grüße", "No.")
    encoded = encoded_one(tokenizer, messages, "a")
    starts = [i for i in range(1, len(encoded.ids)) if encoded.trained[i] and not encoded.trained[i - 1]]
    assert len(starts) == 3
    for start, k in zip(starts, (1, 3, 5), strict=True):
        prompt = tokenizer.apply_chat_template(messages[:k], tokenize=False, add_generation_prompt=True)
        assert encoded.ids[:start] == tokenizer(prompt, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_turn_taken_out_of_the_loss(small_tokenizer: Make, family: str) -> None:
    messages = talk("a", "Yes.", "b", "No.")
    messages[1]["train"] = False
    assert learned(small_tokenizer(family), messages) == expected(family, "Yes.", "No.")[1:]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_answer_means_no_trained_token(small_tokenizer: Make, family: str) -> None:
    assert learned(small_tokenizer(family), talk("Hello!")) == []


def test_qwen3_thoughts(small_tokenizer: Make, trim: bool) -> None:
    tokenizer = small_tokenizer("qwen3", trim)
    thoughtful = "<think>\nOne two.\n</think>\n\nYes."
    # The template takes thoughts out of earlier answers and keeps the last one.
    assert learned(tokenizer, talk("a", thoughtful, "b", "<think>Hm</think>No.")) == [
        "Yes.<|im_end|>",
        "<think>\nHm\n</think>\n\nNo.<|im_end|>",
    ]
    assert learned(tokenizer, talk("a", "<think>\n\n</think>\n\nYes.")) == ["<think>\n\n</think>\n\nYes.<|im_end|>"]
    apart = talk("a", "Yes.")
    apart[1]["reasoning_content"] = "One two."
    assert learned(tokenizer, apart) == [thoughtful + "<|im_end|>"]


def test_qwen3_thought_between_tool_calls_goes_out_of_the_history(small_tokenizer: Make) -> None:
    messages = talk("a", "<think>\nHm\n</think>\n\ncall") + [
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "  Yes."},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "No."},
    ]
    assert learned(small_tokenizer("qwen3"), messages) == [
        "call<|im_end|>",
        "  Yes.<|im_end|>",
        "<think>\n\n</think>\n\nNo.<|im_end|>",
    ]


@pytest.mark.parametrize("family", ["qwen25", "chatml"])
def test_thoughts_in_templates_that_do_not_know_them(small_tokenizer: Make, family: str) -> None:
    answers = ["<think>Hm</think> Yes.", "a</think>b</think> c"]
    assert learned(small_tokenizer(family), talk("a", answers[0], "b", answers[1])) == expected(family, *answers)


def test_qwen25_tool_messages_are_not_trained(small_tokenizer: Make) -> None:
    messages = talk("a", "call")[:2] + [{"role": "tool", "content": "42"}, {"role": "assistant", "content": "Yes."}]
    assert learned(small_tokenizer("qwen25"), messages) == ["call<|im_end|>", "Yes.<|im_end|>"]


def test_the_first_token_is_never_trained(small_tokenizer: Make) -> None:
    template = (
        "{% for m in messages if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% endfor %}"
    )
    template = "{% set users = messages %}" + template + "{{ messages[0]['content'] }}"
    encoded = encoded_one(small_tokenizer("chatml", template=template), talk("one", "two"), "a")
    assert encoded.trained[0] is False and encoded.trained[1] is True


def test_a_slow_tokenizer_is_refused() -> None:
    from aitrain.data.masking import require_fast

    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="Slow is a slow tokenizer"):
        require_fast(Slow())


def test_an_end_of_turn_that_the_tokenizer_splits_is_refused(small_tokenizer: Make) -> None:
    tokenizer = small_tokenizer("qwen25")
    # A token that is only read between blanks is not read behind a word.
    tokenizer.add_tokens([AddedToken("<|end|>", single_word=True)])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|end|>")
    with pytest.raises(DataError, match="does not read the end of turn '<|end|>' as one token"):
        encoded_one(tokenizer, talk("a", "b"), "a")
