"""Forecasts as a picture: past values, future values and the forecast range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aitrain.tasks.pictures import save, text

WIDTH, HEIGHT, LEFT, GAP = 640, 150, 70, 46
"""Width and height of a drawing, the room for its numbers, and that between two, in pixels."""


@dataclass(frozen=True)
class Window:
    """One forecast."""

    title: str
    past: Sequence[float]
    target: Sequence[float]
    low: Sequence[float]
    middle: Sequence[float]
    high: Sequence[float]


def forecasts(windows: Sequence[Window], levels: tuple[float, float], file: Path) -> None:
    """Draw forecasts one below the other.

    Args:
        windows: The forecasts.
        levels: Lowest and highest quantile.
        file: Picture to write.
    """
    band = f"band: {100 * levels[0]:g} to {100 * levels[1]:g} %"
    parts = [text(LEFT, 16, f"black: measured, blue: forecast (middle, and {band})")]
    for number, window in enumerate(windows):
        parts += _drawn(window, 34 + number * (HEIGHT + GAP))
    save(LEFT + WIDTH + 20, 34 + len(windows) * (HEIGHT + GAP), parts, file)


def _drawn(window: Window, top: float) -> list[str]:
    every = [*window.past, *window.target, *window.low, *window.high]
    finite = [value for value in every if math.isfinite(value)]
    low, high = min(finite), max(finite)
    span = (high - low) or 1.0
    steps = len(window.past) + len(window.target)

    def x(step: float) -> float:
        return LEFT + WIDTH * step / max(1, steps - 1)

    def y(value: float) -> float:
        return top + 14 + (HEIGHT - 14) * (high - value) / span

    def line(values: Sequence[float], first: int, colour: str, more: str = "") -> list[str]:
        """Draw a line that is broken where there is no value."""
        found, run = [], []
        for at, value in enumerate([*values, math.nan]):
            if math.isfinite(value):
                run.append(f"{x(first + at):.1f},{y(value):.1f}")
            elif run:
                points = " ".join(run)
                found.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"{more}/>')
                run = []
        return found

    begin = len(window.past)
    corners = [(begin + at, value) for at, value in enumerate(window.high)]
    corners += [(begin + at, value) for at, value in reversed(list(enumerate(window.low)))]
    area = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in corners)
    parts = [text(LEFT, top + 6, window.title)]
    for value in (low, high):
        parts.append(text(LEFT - 6, y(value) + 4, f"{value:.4g}", "end"))
    parts.append(
        f'<rect x="{LEFT}" y="{top + 14:g}" width="{WIDTH}" height="{HEIGHT - 14}" fill="none" stroke="#ccc"/>'
    )
    parts.append(f'<polygon points="{area}" fill="#4c78a8" fill-opacity="0.25"/>')
    parts += line([*window.past, *window.target], 0, "black")
    parts += line(window.middle, begin, "#2a5d96", ' stroke-dasharray="5 2"')
    parts.append(
        f'<line x1="{x(begin - 0.5):.1f}" x2="{x(begin - 0.5):.1f}" y1="{top + 14:g}" y2="{top + HEIGHT:g}" '
        'stroke="#888" stroke-dasharray="2 2"/>'
    )
    return parts
