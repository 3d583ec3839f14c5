"""Pictures of results as SVG: readable in black and white, with the numbers in them.

Written by hand: matplotlib would do it, but where it is installed torchmetrics loads it at every start (0.6 s).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import torch

from aitrain.io import write_text

LARGEST = 30
"""Classes of a confusion matrix; with more, the most common are drawn."""

CELL, LINE, LETTER = 34, 22, 6.5
"""Side of a cell, height of a bar with its space, and width of a letter, in pixels."""


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = "black", turn: int = 0) -> str:
    turned = f' transform="rotate({turn} {x:g} {y:g})"' if turn else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}"{turned}>{escape(words)}</text>'


def save(width: float, height: float, parts: Sequence[str], file: Path) -> None:
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}'
    style = ' font-family="sans-serif" font-size="11">'
    ground = f'<rect width="{width:g}" height="{height:g}" fill="white"/>'
    write_text(file, "\n".join([head + style, ground, *parts, "</svg>"]) + "\n")


def confusion_matrix(guesses: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], file: Path) -> None:
    """Draw a confusion matrix.

    Args:
        guesses: int64 `(N,)`.
        labels: int64 `(N,)`.
        classes: Names, in the order of the numbers.
        file: Picture to write.
    """
    kept = torch.bincount(labels, minlength=len(classes)).argsort(descending=True)[:LARGEST].sort().values.tolist()
    names = [classes[number] for number in kept]
    counts = torch.tensor([[int(((labels == row) & (guesses == column)).sum()) for column in kept] for row in kept])
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).tolist()
    left, top = 40 + LETTER * max(map(len, names)), 40.0
    bottom, below = top + CELL * len(kept), 50 + 0.7 * LETTER * max(map(len, names))
    more = f", the commonest {len(kept)} of {len(classes)} classes" if len(kept) < len(classes) else ""
    title = f"{int((guesses == labels).sum())} of {len(labels)} held-out samples right{more}"
    parts = [text(left, 20, title), text(left, bottom + below - 6, "predicted class")]
    parts.append(text(14, (top + bottom) / 2, "right", "middle", turn=-90))
    for row, name in enumerate(names):
        y = top + CELL * row
        parts.append(text(left - 6, y + CELL / 2 + 4, name, "end"))
        parts.append(text(left + CELL * (row + 0.6), bottom + 14, name, "end", turn=-45))
        for column in range(len(kept)):
            x, share = left + CELL * column, shares[row][column]
            red, green, blue = (round(255 - share * (255 - full)) for full in (8, 81, 156))
            box = f'<rect x="{x:g}" y="{y:g}" width="{CELL}" height="{CELL}" stroke="#ccc"'
            parts.append(f'{box} fill="rgb({red},{green},{blue})"/>')
            if counts[row, column]:
                colour = "white" if share > 0.5 else "black"
                parts.append(text(x + CELL / 2, y + CELL / 2 + 4, str(int(counts[row, column])), "middle", colour))
    width = max(left + CELL * len(kept) + 20, left + LETTER * len(title) + 10)
    save(width, bottom + below, parts, file)


def bars(names: Sequence[str], values: Sequence[float], title: str, file: Path) -> None:
    """Draw shares from 0 to 1 as bars, with their numbers.

    Args:
        names: One per bar.
        values: From 0 to 1.
        title: What they are.
        file: Picture to write.
    """
    left, length = 20 + LETTER * max(map(len, names)), 300
    parts = [text(left, 20, title)]
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        y = 34 + LINE * number
        parts.append(text(left - 6, y + 12, name, "end"))
        parts.append(f'<rect x="{left:g}" y="{y}" width="{length * value:.1f}" height="{LINE - 6}" fill="#4c78a8"/>')
        parts.append(text(left + length * value + 5, y + 12, f"{value:.2f}"))
    save(left + length + 50, 44 + LINE * len(names), parts, file)


def histogram(values: Sequence[float], title: str, below: str, file: Path, bins: int = 20) -> None:
    """Draw a histogram; values above zero in blue, those below in grey.

    Args:
        values: At least one.
        title: What they are.
        below: Label below the axis.
        file: Picture to write.
        bins: Number of bars; zero is a limit of one.
    """
    most = max(map(abs, values)) or 1.0
    low, high = min(0.0, *values), max(0.0, *values)
    step = max(high - low, most / bins) / bins
    first = -math.ceil(-low / step)
    last = max(math.ceil(high / step), int(max(values) >= 0)) - 1
    counts = Counter(min(math.floor(value / step), last) for value in values)
    places = range(first, last + 1)
    left, width, top, height = 40.0, 480.0 / len(places), 40.0, 160.0
    tallest = max(counts.values())
    parts = [text(left, 20, title), text(left + 240, top + height + 34, below, "middle")]
    for at, place in enumerate(places):
        tall = height * counts[place] / tallest
        x, colour = left + at * width, "#4c78a8" if place >= 0 else "#999"
        parts.append(
            f'<rect x="{x:.1f}" y="{top + height - tall:.1f}" width="{width - 2:.1f}" height="{tall:.1f}" '
            f'fill="{colour}"/>'
        )
        if counts[place]:
            parts.append(text(x + width / 2, top + height - tall - 3, str(counts[place]), "middle"))
    for value in {low, 0.0, high}:
        parts.append(text(left + (value / step - first) * width, top + height + 16, f"{value:.3g}", "middle"))
    save(max(left + 480 + 30, left + LETTER * len(title) + 10), top + height + 46, parts, file)
