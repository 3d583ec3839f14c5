"""One moving line on a terminal, plain lines in a log, nothing on other ranks."""

from __future__ import annotations

import io
import os
import pty

import pytest

from aitrain.trainer.display import Display, duration


@pytest.fixture(autouse=True)
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that can do everything, 80 columns wide."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("AITRAIN_PLAIN", raising=False)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1:00 min"), (61, "1:01 min"), (3599, "59:59 min"), (3600, "1:00:00 h")]
    + [(3725, "1:02:05 h"), (360_000, "100:00:00 h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def steps(display: Display, numbers: range) -> None:
    for step in numbers:
        display.step(step, loss=2.0 / step, speed="1,234 tokens/s", left_s=61)


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_the_moving_line_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = Terminal()
    steps(Display(True, 4, out), range(1, 5))
    drawn = out.getvalue().split("\r\033[K")[1:]
    assert max(map(len, drawn)) < columns and all(("█" in line) == (columns > 60) for line in drawn)


def test_a_screen_reader_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITRAIN_PLAIN", "1")
    out = Terminal()
    steps(Display(True, 4, out, line_every_s=1e9), range(1, 5))
    assert out.getvalue().count("\n") == 2 and "\r" not in out.getvalue()


def test_plain_lines_for_the_first_and_last_step() -> None:
    out = io.StringIO()
    steps(Display(True, 100, out, line_every_s=1e9), range(1, 101))
    assert out.getvalue().splitlines() == [
        "step 1/100  loss 2.0000  1,234 tokens/s  1:01 min left",
        "step 100/100  loss 0.0200  1,234 tokens/s  1:01 min left",
    ]


def test_plain_lines_in_between_when_it_is_time() -> None:
    out = io.StringIO()
    steps(Display(True, 5, out, line_every_s=0.0), range(1, 6))
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    assert "\r" not in out.getvalue() and "\033" not in out.getvalue()


def test_one_moving_line_on_a_terminal() -> None:
    out = Terminal()
    display = Display(True, 4, out)
    steps(display, range(1, 5))
    drawn = out.getvalue().split("\r\033[K")[1:]
    assert [line.count("█") for line in drawn] == [6, 12, 18, 24]
    assert [line.count("█") + line.count("░") for line in drawn] == [24] * 4
    assert drawn[-1].endswith("] step 4/4  loss 0.5000  1,234 tokens/s  1:01 min left")
    assert "\n" not in out.getvalue()
    display.say("done\nwith it")
    display.say("bye")
    assert out.getvalue().endswith("left\ndone\nwith it\nbye\n"), "the moving line is ended once"


def test_a_real_terminal_is_recognised() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as out, os.fdopen(ours, "rb"):
        assert Display(True, 1, out).moving


def test_other_ranks_are_silent() -> None:
    for out in (Terminal(), io.StringIO()):
        display = Display(False, 4, out)
        steps(display, range(1, 5))
        display.say("hello")
        assert out.getvalue() == ""


def test_it_speaks_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output belongs to what a command was asked for."""
    Display(True, 1).say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_a_terminal_that_knows_only_ascii() -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    out = Terminal(io.BytesIO(), encoding="ascii")
    display = Display(True, 2, out=out)
    display.step(1, 1.0, "10 tokens/s", 1.0)
    display.step(2, 1.0, "10 tokens/s", 0.0)
    out.flush()
    assert b"[############............] step 1/2" in out.buffer.getvalue()  # type: ignore[attr-defined]
