"""What a terminal can show: characters, colours, moving lines; and plain lines for those who ask for them."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

PLAIN = "AITRAIN_PLAIN"
"""Variable of the environment that asks for plain lines in place of tables and drawings, as screen readers need."""


def speak_anywhere() -> None:
    """Make every character printable, as an escape if the terminal does not support it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_plain() -> bool:
    """Return whether the user has asked for plain lines (`AITRAIN_PLAIN=1`)."""
    return os.environ.get(PLAIN, "") not in ("", "0")


def can_move(stream: TextIO) -> bool:
    """Return whether a line may be written again in place: not in files, dumb terminals and screen readers.

    Args:
        stream: Where it goes.
    """
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not is_plain()


def has_colour(stream: TextIO) -> bool:
    """Return whether colours may be used: in a terminal, unless `NO_COLOR` is set.

    Args:
        stream: Where the text goes.

    Source: https://no-color.org
    """
    return can_move(stream) and not os.environ.get("NO_COLOR")
