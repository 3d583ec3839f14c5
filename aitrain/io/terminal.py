"""Writing to terminals that lack a character."""

from __future__ import annotations

import io
import sys


def speak_anywhere() -> None:
    """Let every character be written, as an escape where the terminal does not have it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
