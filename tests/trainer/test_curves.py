"""Curves are drawn from what the run has written down: a chart that fits the terminal, a page with every value."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from aitrain.io.terminal import PLAIN
from aitrain.tasks.metric import Metric
from aitrain.trainer.curves import Curves, chart, draw, read_curves

from .conftest import Ended

FALLING = [(float(step), 5.0 * math.exp(-step / 20)) for step in range(1, 101)]


def test_a_run_is_read_and_its_page_is_written(trained: Ended) -> None:
    found = read_curves(trained.directory.metrics_file, trained.directory.events_file, Metric("loss"))
    assert [step for step, _ in found.loss] == [1, 2, 3, 4] and [step for step, _ in found.held_out] == [0, 2, 4]
    assert len(found.rate) == len(found.speed) == 4 and found.unit == "tokens"
    page = ElementTree.parse(trained.directory.path / "report" / "curves.svg").getroot()
    words = [element.text for element in page.iter() if element.tag.endswith("text")]
    for title in ("loss, held-out loss (dots)", "learning rate", "tokens per second"):
        assert title in words
    assert len([1 for element in page.iter() if element.tag.endswith("circle")]) == 3


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_chart_fits_and_falls(width: int) -> None:
    lines = chart(FALLING, width)
    assert max(map(len, lines)) <= width and len(lines) == 8
    plot = [line.partition("|")[2] for line in lines[:6]]
    heights = [sum(row[at : at + 1] not in ("", " ") for row in plot) for at in range(max(map(len, plot)))]
    assert heights == sorted(heights, reverse=True) and heights[0] == 6 and heights[-1] == 1
    assert lines[0].strip().startswith("4.") and lines[-1].split() == ["step", "1", "100"]


def test_nothing_is_drawn_for_screen_readers_and_terminals_without_the_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chart(FALLING[:3], 80) == [] and chart([(step, 1.0) for step, _ in FALLING], 80) == []
    monkeypatch.setenv(PLAIN, "1")
    assert chart(FALLING, 80) == []
    monkeypatch.delenv(PLAIN)

    class Old:
        encoding = "latin-1"

    monkeypatch.setattr(sys, "stderr", Old())
    assert chart(FALLING, 80) == []


def test_another_metric_has_a_panel_of_its_own(tmp_path: Path) -> None:
    curves = Curves(loss=FALLING, held_out=[(0.0, 0.1), (100.0, 0.9)], metric="macro f1")
    assert draw(curves, tmp_path / "c.svg") and "held-out macro f1" in (tmp_path / "c.svg").read_text()
    assert not draw(Curves(), tmp_path / "none.svg")
