"""Marks that replace the texts of a conversation: their places in the rendered template are the places of the texts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from aitrain.data.conversation import Message
from aitrain.errors import DataError

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields in which a message keeps the assistant's thought apart from its answer."""


@dataclass(frozen=True)
class Turn:
    """Position of an assistant's message in the rendered text."""

    message: int
    """Number of the message, from 0."""

    begin: int
    """Index of its first character (without leading blanks)."""

    end: int
    """Index after its last character (without trailing blanks)."""


@dataclass(frozen=True)
class Original:
    """What a mark replaces."""

    text: str
    message: int
    part: str
    """Which part of the message: a key of `PARTS`, or the name of another field."""


PARTS = {
    "content": "the {role}'s message",
    "answer": "the {role}'s answer",
    "lead": "the {role}'s words before the thought",
    "thought": "the {role}'s thought",
    "call": "the {role}'s tool call",
    "name": "the name of the {role}",
    **{key: f"the {{role}}'s {key}" for key in REASONING},
}
"""Parts of a message that matter, in words."""


@dataclass
class Marked:
    """Marks put into a conversation, and where they appear."""

    every_role: bool
    """Whether all messages carry marks, or the assistant's only."""

    originals: dict[str, Original] = field(default_factory=dict)
    found: set[str] = field(default_factory=set)
    turns: list[Turn] = field(default_factory=list)

    def mark(self, message: Message, stem: str, where: str) -> Message:
        """Replace the texts of a message by marks; the blanks around each text are kept.

        Args:
            message: A message.
            stem: Prefix of its marks: letters that do not appear in the conversation, and the message's number.
            where: Place of the record, for messages.

        Returns:
            The message with marks.

        Raises:
            DataError: An answer holds only a thought.
        """
        number = int(stem.lstrip("zq"))

        def mark(words: str, kind: str, part: str) -> str:
            core = words.strip()
            if not core:
                return words
            name = f"{stem}{kind};"
            self.originals[name] = Original(core, number, part)
            begin = len(words) - len(words.lstrip())
            return words[:begin] + name + words[begin + len(core) :]

        changed: Message = {}
        for position, (key, value) in enumerate(other_texts(message)):
            changed[key] = mark(value, f"field{_letters(position)}", key)
        if message["role"] != "assistant":
            return {**message, **changed, "content": mark(message["content"], "content", "content")}
        content: str = message["content"]
        thought, closing, answer = content.rpartition("</think>")
        if closing and not answer.strip() and not message.get("tool_calls"):
            raise DataError(
                f"{where}: an answer of the assistant contains only a thought: write the answer after </think>"
            )
        if closing and "</think>" not in thought and thought.count("<think>") <= 1:
            lead, opening, thought = thought.rpartition("<think>")
            words = mark(lead, "lead", "lead") + opening + mark(thought, "thought", "thought") + closing
            words += mark(answer, "answer", "answer")
        else:
            words = mark(content, "answer", "answer")
        if message.get("tool_calls"):
            changed["tool_calls"] = [
                {
                    **call,
                    "function": {
                        **call["function"],
                        "name": mark(call["function"]["name"], f"call{_letters(position)}", "call"),
                    },
                }
                for position, call in enumerate(message["tool_calls"])
            ]
        return {**message, **changed, "content": words}

    @staticmethod
    def names_in(message: Message) -> list[str]:
        """Return the marks that a message carries.

        Args:
            message: What `mark` returned.
        """
        return re.findall(r"zq+\d+[a-z]+;", str(message))


def other_texts(message: Message) -> list[tuple[str, str]]:
    """Return the fields of a message that hold text, apart from role and content.

    Args:
        message: A message.
    """
    return [(k, v) for k, v in message.items() if k not in ("role", "content") and isinstance(v, str) and v.strip()]


def _letters(number: int) -> str:
    return chr(ord("a") + number % 26) * (number // 26 + 1)
