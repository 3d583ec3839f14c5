"""A model's own chat template: renders a conversation and finds in the text exactly what the assistant says."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import jinja2

from aitrain.data.conversation import TRAIN, Message
from aitrain.errors import DataError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_OWN_TEMPLATE = "write model.chat_template=FILE with a template that does"


@dataclass(frozen=True)
class Span:
    """Characters that are trained: an assistant's turn up to and with its end-of-turn token."""

    begin: int
    end: int
    end_token: str


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model reads it."""

    text: str
    spans: list[Span]


@dataclass(frozen=True)
class _Turn:
    """Where an assistant's message stands in the rendered text."""

    message: int
    begin: int
    """First character that comes from the message itself (leading blanks aside)."""
    end: int
    """Behind its last character (trailing blanks aside)."""


class ChatTemplate:
    """The chat template of a tokenizer, with what is learned from it once.

    Args:
        tokenizer: A fast transformers tokenizer.

    Raises:
        DataError: The tokenizer has no chat template, or several and none is the default.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise DataError(
                "the model's tokenizer has no chat template, so conversations cannot be written as it expects: "
                "write model.chat_template=FILE (a Jinja file), or use an instruction-tuned model"
            )
        try:
            self.source: str = tokenizer.get_chat_template()
        except ValueError as fault:
            raise DataError(f"{fault}: write model.chat_template=FILE with the one to use") from None
        self._tokenizer = tokenizer
        self._marks_generation = bool(_GENERATION.search(self.source))
        tokens = sorted({str(token) for token in tokenizer.added_tokens_decoder.values()}, key=len, reverse=True)
        self._end_of_turn = re.compile(r"\s*(" + "|".join(map(re.escape, tokens)) + ")") if tokens else None

    def render(self, messages: list[Message], where: str) -> Rendered:
        """Write a conversation with the template and find the assistant's turns in it.

        A turn begins behind the generation prompt, the text after which the model has to speak, and ends with the
        end-of-turn token. With `{% generation %}` in the template, a turn begins where that block does.

        Args:
            messages: As `to_messages` gives them.
            where: Place of the record, for messages.

        Returns:
            The text and the spans to train, in order.

        Raises:
            DataError: The template refuses the conversation, leaves a part of it out, rewrites an answer beyond
                recognition, or ends a turn without a special token.
        """
        text = self._write(messages, where)
        for number, message in enumerate(messages, start=1):
            if message["role"] in ("system", "user") and message["content"].strip() not in text:
                advice = (
                    f"put it into the first user message, or {_OWN_TEMPLATE}"
                    if message["role"] == "system"
                    else _OWN_TEMPLATE
                )
                raise DataError(
                    f"{where}: the model's chat template leaves out message {number}, which is the "
                    f"{message['role']}'s: {advice}"
                )
        turns = self._find_turns(messages, text, where)
        starts = self._generation_starts(messages, turns, text, where) if self._marks_generation else None
        spans = []
        for number, turn in enumerate(turns):
            end, token = self._end(text, turn, where)
            if messages[turn.message].get(TRAIN, True):
                lowest = turns[number - 1].end if number else 0
                begin = starts[number] if starts is not None else self._start(messages, turn, lowest, text, where)
                spans.append(Span(begin, end, token))
        return Rendered(text, spans)

    def _write(self, messages: list[Message], where: str, generation_prompt: bool = False) -> str:
        plain = [{key: value for key, value in message.items() if key != TRAIN} for message in messages]
        try:
            return self._tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=generation_prompt)
        except (jinja2.TemplateError, TypeError, ValueError) as fault:
            raise DataError(
                f"{where}: the model's chat template refuses this conversation: {fault}; "
                "change the record, or write model.chat_template=FILE"
            ) from None

    def _find_turns(self, messages: list[Message], text: str, where: str) -> list[_Turn]:
        """Render once more with a unique mark in place of each answer; what stands between the marks is the template's.

        Blanks around an answer stay around its mark, so a template that trims does so in both renderings. Putting the
        answers back must give the first rendering again, character by character: that proves every position.
        """
        stem = "zq"
        everything = text + "".join(str(value) for message in messages for value in message.values())
        while stem in everything:
            stem += "q"
        originals: dict[str, str] = {}
        marked = [
            _marked(message, f"{stem}{number}", originals, where) if message["role"] == "assistant" else message
            for number, message in enumerate(messages)
        ]
        skeleton = self._write(marked, where)
        turns: list[_Turn] = []
        begins: dict[int, int] = {}
        pieces: list[str] = []
        shift = last = 0
        for match in re.finditer(stem + r"(\d+)[a-z]+;", skeleton):
            mark, number = match.group(), int(match.group(1))
            begin = match.start() + shift
            begins.setdefault(number, begin)
            shift += len(originals[mark]) - len(mark)
            pieces += [skeleton[last : match.start()], originals[mark]]
            last = match.end()
            if mark.endswith("answer;"):
                turns.append(_Turn(number, begins[number], begin + len(originals[mark])))
        pieces.append(skeleton[last:])
        expected = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if [turn.message for turn in turns] != expected:
            raise DataError(
                f"{where}: the model's chat template does not write each of the {len(expected)} answers once: "
                f"{_OWN_TEMPLATE}"
            )
        if "".join(pieces) != text:
            raise DataError(
                f"{where}: the model's chat template rewrites the assistant's words, so what is to be learned cannot "
                "be found: write model.chat_template=FILE with a template that keeps them, or with {% generation %}"
            )
        return turns

    def _start(self, messages: list[Message], turn: _Turn, lowest: int, text: str, where: str) -> int:
        """Find where the model begins to speak: behind the generation prompt of everything before."""
        prompt = self._write(messages[: turn.message], where, generation_prompt=True)
        before = messages[turn.message - 1]["content"].strip()
        same = len(os.path.commonprefix([prompt, text[: turn.begin]]))
        if same == len(prompt):
            between = text[same : turn.begin]
            if between.strip() and prompt == self._write(messages[: turn.message], where):
                raise DataError(
                    f"{where}: the model's chat template has no generation prompt, so {between!r} would be learned as "
                    "if the assistant said it: write model.chat_template=FILE with a template that writes it where "
                    "add_generation_prompt is true"
                )
            return same
        heard = prompt.rfind(before)
        if same >= heard + len(before) and not text[same : turn.begin].strip():
            # The prompt opens a thought that this answer does not have: they part behind the header.
            return same
        # Earlier turns may be written otherwise once there are later ones (thoughts taken out of the history).
        tail = prompt[heard:]
        found = text.rfind(tail, lowest, turn.begin) if before else -1
        if found < 0:
            raise DataError(
                f"{where}: the generation prompt of the model's chat template does not lead to message "
                f"{turn.message + 1}: it ends with {prompt[-40:]!r}, but what stands before the answer is "
                f"{text[max(lowest, turn.begin - 40) : turn.begin]!r}: "
                "write model.chat_template=FILE with a template where it does, or with {% generation %}"
            )
        return found + len(tail)

    def _generation_starts(self, messages: list[Message], turns: list[_Turn], text: str, where: str) -> list[int]:
        from transformers.utils.chat_template_utils import render_jinja_template

        plain = [{key: value for key, value in message.items() if key != TRAIN} for message in messages]
        # transformers declares a string, but gives the text and the blocks of each conversation.
        rendered: Any = render_jinja_template(
            conversations=[plain],
            chat_template=self.source,
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        spans: list[tuple[int, int]] = rendered[1][0]
        if len(spans) != len(turns) or any(
            not begin <= turn.begin < turn.end <= end for (begin, end), turn in zip(spans, turns, strict=True)
        ):
            raise DataError(
                f"{where}: the {{% generation %}} blocks of the model's chat template do not hold the assistant's "
                f"{len(turns)} answers: write model.chat_template=FILE with a mended template"
            )
        return [begin for begin, _ in spans]

    def _end(self, text: str, turn: _Turn, where: str) -> tuple[int, str]:
        match = self._end_of_turn.match(text, turn.end) if self._end_of_turn else None
        if match is None:
            raise DataError(
                f"{where}: the model's chat template ends message {turn.message + 1} with "
                f"{text[turn.end : turn.end + 20]!r}, which begins with no special token of the tokenizer: the model "
                "would never learn to stop: write model.chat_template=FILE with a template that closes every answer "
                "with one, for instance {{ eos_token }}"
            )
        return match.end(), match.group(1)


def _marked(message: Message, stem: str, originals: dict[str, str], where: str) -> Message:
    """Replace the words of an answer, and of its thought, by marks; the blanks around them stay."""

    def mark(words: str, kind: str) -> str:
        core = words.strip()
        if not core:
            return words
        name = f"{stem}{kind};"
        originals[name] = core
        begin = len(words) - len(words.lstrip())
        return words[:begin] + name + words[begin + len(core) :]

    content: str = message["content"]
    thought, closing, answer = content.rpartition("</think>")
    if closing and not answer.strip():
        raise DataError(f"{where}: an answer of the assistant holds only a thought: write the answer behind </think>")
    if closing and "</think>" not in thought and thought.count("<think>") <= 1:
        lead, opening, thought = thought.rpartition("<think>")
        marked = mark(lead, "lead") + opening + mark(thought, "thought") + closing + mark(answer, "answer")
    else:
        marked = mark(content, "answer")
    keys = [key for key in _REASONING_KEYS if isinstance(message.get(key), str)]
    return {**message, **{key: mark(message[key], key.replace("_", "")) for key in keys}, "content": marked}
