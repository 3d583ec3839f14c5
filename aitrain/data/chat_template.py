"""A model's own chat template: renders a conversation and locates the assistant's words in the text."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jinja2

from aitrain.data.conversation import Conversation, Message
from aitrain.data.fields import TRAIN
from aitrain.data.marks import PARTS, Marked, Turn, other_texts
from aitrain.data.tool_calls import tool_name, unsaid_arguments, with_text_arguments
from aitrain.errors import DataError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_BOOKKEEPING = ("id", "tool_call_id", "name")
"""Fields of a tool's answer that name its call; most templates rely on the order instead."""
_OWN_TEMPLATE = "write model.chat_template=FILE with a template that does"


@dataclass(frozen=True)
class Span:
    """Characters that are trained: an assistant's turn, including its end-of-turn token."""

    begin: int
    end: int
    end_token: str


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model reads it."""

    text: str
    spans: list[Span]
    left_out: list[str] = field(default_factory=list)
    """Parts of the record that the template leaves out, in words ("the assistant's thought in message 2")."""

    unused: list[str] = field(default_factory=list)
    """Other fields of messages that it leaves out."""


class ChatTemplate:
    """The chat template of a tokenizer, analysed once.

    Args:
        tokenizer: A fast transformers tokenizer.

    Raises:
        DataError: The tokenizer has no chat template, or several and none is the default.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise DataError(
                "the model's tokenizer has no chat template (it is a base model): choose one with "
                "model.chat_template=NAME, for instance chatml, or use an instruction-tuned model"
            )
        try:
            self.source: str = tokenizer.get_chat_template()
        except ValueError as fault:
            raise DataError(f"{fault}: write model.chat_template=FILE with the one to use") from None
        self._tokenizer = tokenizer
        self._marks_generation = bool(_GENERATION.search(self.source))
        tokens = sorted({str(token) for token in tokenizer.added_tokens_decoder.values()}, key=len, reverse=True)
        any_token = "(" + "|".join(map(re.escape, tokens)) + ")"
        self._end_of_turn = re.compile(r"\s*" + any_token) if tokens else None
        self._closing = re.compile(any_token + r"\Z") if tokens else None

    def render(self, conversation: Conversation, where: str) -> Rendered:
        """Write a conversation with the template, and find the assistant's turns and what the template leaves out.

        A turn begins after the generation prompt, the text after which the model answers, and ends with the
        end-of-turn token. With `{% generation %}` in the template, a turn begins where that block does.

        Args:
            conversation: As `to_conversation` gives it.
            where: Place of the record, for messages.

        Returns:
            The text, the spans to train, in order, and what is missing in the text.

        Raises:
            DataError: The template refuses the conversation, rewrites an answer beyond recognition, or ends a turn
                without a special token.
        """
        messages, tools = self._in_its_form(conversation.messages), conversation.tools
        text = self._write(messages, tools, where)
        marked = self._find_turns(messages, tools, text, where)
        turns = marked.turns
        starts = self._generation_starts(messages, tools, turns, text, where) if self._marks_generation else None
        spans = []
        for number, turn in enumerate(turns):
            end, token = self._end(text, turn, where)
            if messages[turn.message].get(TRAIN, True):
                lowest = turns[number - 1].end if number else 0
                begin = (
                    starts[number] if starts is not None else self._start(messages, tools, turn, lowest, text, where)
                )
                spans.append(Span(begin, end, token))
        left_out, unused = self._missing(conversation, marked, text)
        if tools:
            ignored = text == self._write(messages, [], where)
            left_out += [f"the tool {tool_name(t)}" for t in tools if ignored or str(tool_name(t)) not in text]
        return Rendered(text, spans, left_out, unused)

    def _in_its_form(self, messages: list[Message]) -> list[Message]:
        """Write the arguments of tool calls in the form that the template expects."""
        if not any("tool_calls" in message for message in messages) or not self._wants_text_arguments:
            return messages
        return [
            {**message, "tool_calls": with_text_arguments(message["tool_calls"])}
            if "tool_calls" in message
            else message
            for message in messages
        ]

    def _reads(self, key: str) -> bool:
        """Whether the template mentions a field."""
        return re.search(rf"\b{re.escape(key)}\b", self.source) is not None

    @cached_property
    def _wants_text_arguments(self) -> bool:
        """Whether the template writes a call's arguments as they are, so that an object would appear in
        Python's notation."""
        call = {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": {"zq": "x"}}}
        answer: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
        probe = [{"role": "user", "content": "a"}, answer]
        try:
            return "{'zq'" in self._write(probe, [], "")
        except DataError:
            return False  # it refuses for a reason of its own, which the record's own rendering will tell

    def _write(
        self, messages: list[Message], tools: list[dict[str, Any]], where: str, generation_prompt: bool = False
    ) -> str:
        plain = [{key: value for key, value in message.items() if key != TRAIN} for message in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(
                plain, tools=tools or None, tokenize=False, add_generation_prompt=generation_prompt
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as fault:
            raise DataError(
                f"{where}: the model's chat template rejects this conversation: {fault}; "
                "change the record, or write model.chat_template=FILE"
            ) from None
        return text

    def _find_turns(self, messages: list[Message], tools: list[dict[str, Any]], text: str, where: str) -> Marked:
        """Render again with unique marks in place of the contents; the text between them comes from the template.

        Blanks around a text stay around its mark, so a template that trims does so in both renderings. Putting the
        texts back must give the first rendering again, character by character: that proves every position. Every
        message is marked; if a template inspects the messages of users or tools, only the answers are marked.
        """
        stem = "zq"
        everything = text + "".join(str(value) for message in messages for value in message.values())
        while stem in everything:
            stem += "q"
        try:
            return self._put_back(messages, tools, text, where, stem, every_role=True)
        except DataError:
            return self._put_back(messages, tools, text, where, stem, every_role=False)

    def _put_back(
        self, messages: list[Message], tools: list[dict[str, Any]], text: str, where: str, stem: str, every_role: bool
    ) -> Marked:
        marked = Marked(every_role)
        written = [
            marked.mark(message, f"{stem}{number}", where) if every_role or message["role"] == "assistant" else message
            for number, message in enumerate(messages)
        ]
        skeleton = self._write(written, tools, where)
        begins: dict[int, int] = {}
        pieces: list[str] = []
        shift = last = 0
        answers: list[Turn] = []
        after_calls: dict[int, int] = {}
        for match in re.finditer(stem + r"(\d+)[a-z]+;", skeleton):
            mark, number = match.group(), int(match.group(1))
            original = marked.originals[mark].text
            begin = match.start() + shift
            begins.setdefault(number, begin)
            shift += len(original) - len(mark)
            pieces += [skeleton[last : match.start()], original]
            last = match.end()
            marked.found.add(mark)
            if mark.endswith("answer;"):
                answers.append(Turn(number, begins[number], begin + len(original)))
            if messages[number].get("tool_calls"):
                after_calls[number] = begin + len(original)
        pieces.append(skeleton[last:])
        for number, message in enumerate(messages):
            if message.get("tool_calls") and number not in after_calls:
                raise DataError(
                    f"{where}: the model's chat template leaves out the tool call in message {number + 1}: write "
                    "model.chat_template=FILE with a template that keeps it, or write the call into 'content' as the "
                    "model should say it"
                )
        marked.turns = [
            self._calling_turn(written, tools, number, begins[number], after_calls[number], text, where)
            if number in after_calls
            else next((turn for turn in answers if turn.message == number), Turn(-1, 0, 0))
            for number, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        expected = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        plain = [number for number in expected if number not in after_calls]
        whole = [turn.message for turn in answers if turn.message not in after_calls]
        if [turn.message for turn in marked.turns] != expected or whole != plain:
            raise DataError(
                f"{where}: the model's chat template does not write each of the {len(expected)} answers once: "
                f"{_OWN_TEMPLATE}"
            )
        if "".join(pieces) != text:
            raise DataError(
                f"{where}: the model's chat template changes the assistant's words, so the tokens to train on cannot "
                "be found: write model.chat_template=FILE with a template that keeps them, or with {% generation %}"
            )
        return marked

    def _calling_turn(
        self,
        written: list[Message],
        tools: list[dict[str, Any]],
        number: int,
        begin: int,
        behind: int,
        text: str,
        where: str,
    ) -> Turn:
        """Find the end of a turn that calls tools: the text that the template writes after the name of the last
        call.
        """
        marks = Marked.names_in(written[number])
        alone = self._write(written[: number + 1], tools, where)
        places = [(alone.rfind(mark), mark) for mark in marks if mark in alone]
        at, mark = max(places, default=(-1, ""))
        tail = alone[at + len(mark) :].rstrip()
        closing = self._closing.search(tail) if self._closing and at >= 0 else None
        if closing is None or not text.startswith(tail, behind):
            raise DataError(
                f"{where}: the end of message {number + 1}, which calls a tool, cannot be found in the output of the "
                f"model's chat template: {_OWN_TEMPLATE}"
            )
        return Turn(number, begin, behind + closing.start())

    def _missing(self, conversation: Conversation, marked: Marked, text: str) -> tuple[list[str], list[str]]:
        """Return what is missing from the text: important parts, and other fields."""
        left_out, unused = [], []
        for number, message in enumerate(conversation.messages):
            role, place = message["role"], f"message {number + 1}"
            for name, original in marked.originals.items():
                if original.message != number or name in marked.found:
                    continue
                if original.part in _BOOKKEEPING and role == "tool" or original.part not in PARTS:
                    unused.append(f"{original.part} (of a message)")
                else:
                    left_out.append(f"{PARTS[original.part].format(role=role)} in {place}")
            if not marked.every_role and role != "assistant":
                if message["content"].strip() not in text:
                    left_out.append(f"{PARTS['content'].format(role=role)} in {place}")
                unused += [f"{key} (of a message)" for key, value in other_texts(message) if value.strip() not in text]
            unused += [
                f"{key} (of a message)"
                for key, value in message.items()
                if not isinstance(value, (str, bool)) and key != "tool_calls" and not self._reads(key)
            ]
            turn = next((turn for turn in marked.turns if turn.message == number), None)
            written = not any("tool call" in what and what.endswith(place) for what in left_out)
            for call in message.get("tool_calls", ()) if turn and written else ():
                assert turn is not None
                unsaid = unsaid_arguments(call, text[turn.begin : turn.end])
                left_out += [f"the argument {name!r} of {call['function']['name']} in {place}" for name in unsaid]
        return list(dict.fromkeys(left_out)), unused

    def _start(
        self, messages: list[Message], tools: list[dict[str, Any]], turn: Turn, lowest: int, text: str, where: str
    ) -> int:
        """Find where the answer of the model begins: after the generation prompt of everything before it."""
        prompt = self._write(messages[: turn.message], tools, where, generation_prompt=True)
        before = messages[turn.message - 1]["content"].strip()
        same = len(os.path.commonprefix([prompt, text[: turn.begin]]))
        if same == len(prompt):
            between = text[same : turn.begin]
            unprompted = prompt == self._write(messages[: turn.message], tools, where)
            if between.strip() and unprompted and self._has_header(messages[: turn.message], tools, prompt, where):
                raise DataError(
                    f"{where}: the model's chat template has no generation prompt, so {between!r} would be trained as "
                    "part of the answer: write model.chat_template=FILE with a template that writes one when "
                    "add_generation_prompt is true"
                )
            return same
        heard = prompt.rfind(before)
        if same >= heard + len(before) and not text[same : turn.begin].strip():
            # The prompt opens a thought that this answer does not have: they differ after the header.
            return same
        # Earlier turns may be written otherwise once there are later ones (thoughts taken out of the history).
        tail = prompt[heard:]
        found = text.rfind(tail, lowest, turn.begin) if before else -1
        if found < 0:
            raise DataError(
                f"{where}: the generation prompt of the model's chat template does not match the start of message "
                f"{turn.message + 1}: it ends with {prompt[-40:]!r}, but the text before the answer is "
                f"{text[max(lowest, turn.begin - 40) : turn.begin]!r}: "
                "write model.chat_template=FILE with a template where it does, or with {% generation %}"
            )
        return found + len(tail)

    def _has_header(self, before: list[Message], tools: list[dict[str, Any]], prompt: str, where: str) -> bool:
        """Whether the template itself writes something before a plain answer, apart from a thought or call."""
        text = self._write([*before, {"role": "assistant", "content": "zq"}], tools, where)
        return not text.startswith(prompt) or not text[len(prompt) :].lstrip().startswith("zq")

    def _generation_starts(
        self, messages: list[Message], tools: list[dict[str, Any]], turns: list[Turn], text: str, where: str
    ) -> list[int]:
        from transformers.utils.chat_template_utils import render_jinja_template

        plain = [{key: value for key, value in message.items() if key != TRAIN} for message in messages]
        # transformers declares a string, but gives the text and the blocks of each conversation.
        schemas: list[Any] | None = list(tools) or None
        rendered: Any = render_jinja_template(
            conversations=[plain],
            tools=schemas,
            chat_template=self.source,
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        spans: list[tuple[int, int]] = rendered[1][0]
        if len(spans) != len(turns) or any(
            not begin <= turn.begin < turn.end <= end for (begin, end), turn in zip(spans, turns, strict=True)
        ):
            raise DataError(
                f"{where}: the {{% generation %}} blocks of the model's chat template do not match the assistant's "
                f"{len(turns)} answers: write model.chat_template=FILE with a corrected template"
            )
        return [begin for begin, _ in spans]

    def _end(self, text: str, turn: Turn, where: str) -> tuple[int, str]:
        match = self._end_of_turn.match(text, turn.end) if self._end_of_turn else None
        if match is None:
            raise DataError(
                f"{where}: the model's chat template ends message {turn.message + 1} with "
                f"{text[turn.end : turn.end + 20]!r}, which is not a special token of the tokenizer, so the model "
                "would never learn to stop: write model.chat_template=FILE with a template that closes every answer "
                "with one, for instance {{ eos_token }}"
            )
        return match.end(), match.group(1)
