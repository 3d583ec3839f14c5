"""Tables fit the terminal, or become plain lines."""

import pytest

from aitrain.io.table import table
from aitrain.io.terminal import PLAIN

HEAD = ["recipe", "you have", "you get"]
ROWS = [
    ["sft_lora", "questions with answers", "a chat model that answers as you do, with a small adapter"],
    ["x", "", "y"],
]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_table_fits(width: int) -> None:
    lines = table(HEAD, ROWS, width).splitlines()
    assert max(map(len, lines)) <= width and lines[0].split("  ")[0] == "recipe" and set(lines[1]) == {"-", " "}
    assert " ".join(table(HEAD, ROWS, 200).split()).endswith("with a small adapter x y")


def test_lines_for_narrow_terminals_and_screen_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table(HEAD, ROWS, 30).startswith("sft_lora\n  you have: questions with\n    answers\n")
    expected = "sft_lora\n  you have: questions with answers\n"
    monkeypatch.setenv(PLAIN, "1")
    found = table(HEAD, ROWS, 200)
    assert found.startswith(expected) and found.endswith("\n\nx\n  you get: y") and "---" not in found
