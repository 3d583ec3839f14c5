"""transformers is silent inside the block and as before after it."""

from __future__ import annotations

import sys

import pytest
from transformers.utils import logging

from aitrain.models.quiet import first_line, quiet


def test_nothing_is_said_inside_and_all_is_restored(capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.raises(ValueError, match="once"), quiet():
        logging.get_logger("transformers").warning("advice")
        print("bar", file=sys.stderr)
        raise ValueError("once")
    said = capfd.readouterr()
    assert said.out + said.err == ""
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_first_line() -> None:
    assert first_line(ValueError("\n a\nb")) == "a"
    assert first_line(ValueError()) == "ValueError"
