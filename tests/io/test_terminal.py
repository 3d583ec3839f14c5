"""Colours and moving lines only where they can be seen, and where nobody has asked for plain lines."""

import io

import pytest

from aitrain.io.terminal import PLAIN, can_move, has_colour, is_plain


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("name", "value", "moves", "colours"),
    [
        ("TERM", "xterm", True, True),
        ("NO_COLOR", "1", True, False),
        ("TERM", "dumb", False, False),
        (PLAIN, "1", False, False),
    ],
)
def test_what_a_terminal_can_do(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, moves: bool, colours: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for other in ("NO_COLOR", PLAIN):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    assert (can_move(Terminal()), has_colour(Terminal())) == (moves, colours)
    assert not can_move(io.StringIO()) and not has_colour(io.StringIO())
    assert is_plain() == (name == PLAIN)
