"""Pictures are whole SVG files that hold the numbers, also of names with signs of their own."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import torch

from aitrain.tasks.pictures import LARGEST, bars, confusion_matrix, histogram


def words(file: Path) -> list[str]:
    return [each.text or "" for each in ET.parse(file).getroot() if each.tag.endswith("text")]


def test_a_confusion_matrix_has_its_counts(tmp_path: Path) -> None:
    labels, guesses = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 1, 0])
    confusion_matrix(guesses, labels, ["a<b", "c & d", "e"], tmp_path / "m.svg")
    found = words(tmp_path / "m.svg")
    assert "4 of 6 held-out samples right" in found and found.count("a<b") == found.count("c & d") == 2
    assert sorted(word for word in found if word.isdigit()) == ["1", "1", "2", "2"]


def test_of_many_classes_the_commonest_are_drawn(tmp_path: Path) -> None:
    labels = torch.cat([torch.arange(40), torch.arange(LARGEST)])
    confusion_matrix(labels, labels, [f"class {n}" for n in range(40)], tmp_path / "m.svg")
    found = words(tmp_path / "m.svg")
    assert f"70 of 70 held-out samples right, the commonest {LARGEST} of 40 classes" in found
    assert "class 29" in found and "class 30" not in found


def test_bars_have_their_values(tmp_path: Path) -> None:
    bars(["one", "none"], [1.0, 0.0], "shares", tmp_path / "b.svg")
    assert words(tmp_path / "b.svg") == ["shares", "one", "1.00", "none", "0.00"]


def test_a_histogram_counts_every_value_once(tmp_path: Path) -> None:
    for values in ([-1.0, -0.999, 0.0, 0.5, 0.5, 2.0], [0.0, 0.0], [-3.0], [1e-9, 5.0], [-0.1] * 7):
        histogram(values, "title", "margin", tmp_path / "h.svg")
        texts = [each for each in ET.parse(tmp_path / "h.svg").getroot() if each.tag.endswith("text")]
        assert [each.text for each in texts[:2]] == ["title", "margin"]
        counts = [int(each.text or "") for each in texts[2:] if float(each.get("y", "")) < 200]  # above the axis
        assert sum(counts) == len(values)
    histogram([-1.0, 0.5, 2.0], "t", "m", tmp_path / "h.svg")
    colours = [each.get("fill") for each in ET.parse(tmp_path / "h.svg").getroot() if each.tag.endswith("rect")][1:]
    assert colours == sorted(colours, reverse=True), "grey below zero, blue above"
