"""Tables for people: as wide as the terminal, cells wrapped; as plain lines for narrow terminals and screen readers."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

from aitrain.io.terminal import is_plain

NARROWEST = 12
"""Columns below which a cell is not made narrower."""

GAP = "  "


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return rows as a table that fits a width; as one line per cell if requested, or if it is too narrow.

    Args:
        head: Names of the columns.
        rows: Cells, the name of the row first.
        width: Columns; None = those of the terminal, and any number where there is none.
    """
    if width is None:
        is_wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ  # for grep and files, one row is one line
        width = 100_000 if is_wide else shutil.get_terminal_size().columns
    widths = _widths([head, *rows], width)
    if widths is None or is_plain():
        return "\n\n".join(_lines_of(head, row, width) for row in rows)
    lines = _wrapped(head, widths) + [GAP.join("-" * each for each in widths)]
    for row in rows:
        lines += _wrapped(row, widths)
    return "\n".join(lines)


def _widths(rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """Return the width of each column; None if they do not fit."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    room = width - len(GAP) * (len(widths) - 1)
    while sum(widths) > room:
        widest = max(range(1, len(widths)), key=lambda at: widths[at], default=0)
        if widths[widest] <= NARROWEST:
            return None
        widths[widest] -= 1
    return widths


def _wrapped(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [textwrap.wrap(cell, each) or [""] for cell, each in zip(row, widths, strict=True)]
    height = max(map(len, cells))
    padded = [[*cell, *[""] * (height - len(cell))] for cell in cells]
    return [
        GAP.join(f"{part:<{each}}" for part, each in zip(line, widths, strict=True)).rstrip()
        for line in zip(*padded, strict=True)
    ]


def _lines_of(head: Sequence[str], row: Sequence[str], width: int) -> str:
    lines = [row[0]]
    for name, cell in zip(head[1:], row[1:], strict=True):
        if cell:
            lines += textwrap.wrap(f"{name}: {cell}", max(width, 20), initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)
