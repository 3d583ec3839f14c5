"""Curves of a run, drawn from its `metrics.jsonl` and `events.jsonl`: a chart for the terminal and an SVG page."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aitrain.io.terminal import is_plain
from aitrain.tasks.metric import Metric
from aitrain.tasks.pictures import save, text

Points = list[tuple[float, float]]

WIDTH, HEIGHT, LEFT, TOP, GAP = 560, 150, 70, 34, 46
"""Sizes of one panel of the page, in pixels: plot and margins."""

ROWS, LARGEST = 6, 64
"""Rows and most columns of the chart in a terminal."""

BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass
class Curves:
    """What is drawn: optimizer step -> value."""

    loss: Points = field(default_factory=list)
    held_out: Points = field(default_factory=list)
    rate: Points = field(default_factory=list)
    speed: Points = field(default_factory=list)
    unit: str = "tokens"
    metric: str = "loss"


def read_curves(metrics: Path, events: Path, metric: Metric) -> Curves:
    """Read the logs of a run.

    Args:
        metrics: Its `metrics.jsonl`.
        events: Its `events.jsonl`.
        metric: The metric of its held-out data.
    """
    found = Curves(metric=metric.name.replace("_", " "))
    for record in _lines(metrics):
        step = float(record["step"])
        for name, points in (("loss", found.loss), ("lr", found.rate)):
            _add(points, step, record.get(name))
        for name, value in record.items():
            if name.endswith("_per_s"):
                found.unit = name.removesuffix("_per_s")
                _add(found.speed, step, value)
    seen = {}
    for event in _lines(events):
        value = event.get(f"val_{metric.name}")
        if event.get("event") == "evaluated" and isinstance(value, float):
            seen[float(event["step"])] = value
    found.held_out = sorted(seen.items())
    return found


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _add(points: Points, step: float, value: Any) -> None:
    if isinstance(value, (int, float)) and math.isfinite(value):
        points.append((step, float(value)))


def chart(points: Points, width: int | None = None) -> list[str]:
    """Return a small chart of block characters; nothing for screen readers, or if there are too few points.

    Args:
        points: Step and value, in order.
        width: Columns of the terminal; None = as it is.
    """
    if len(points) < 8 or is_plain() or not _can_draw():
        return []
    width = shutil.get_terminal_size((80, 24)).columns if width is None else width
    columns = min(LARGEST, width - 12, len(points))
    bounds = [at * len(points) // columns for at in range(columns + 1)]
    values = [_mean([value for _, value in points[begin:end]]) for begin, end in zip(bounds, bounds[1:], strict=False)]
    low, high = min(values), max(values)
    if high <= low:
        return []
    heights = [1 + round((value - low) / (high - low) * (8 * ROWS - 1)) for value in values]
    lines = []
    for row in range(ROWS - 1, -1, -1):
        cells = "".join(BLOCKS[max(0, min(8, height - 8 * row))] for height in heights)
        label = f"{high:.4g}" if row == ROWS - 1 else f"{low:.4g}" if row == 0 else ""
        lines.append(f"{label:>9} |{cells}".rstrip())
    first, last = (str(int(point[0])) for point in (points[0], points[-1]))
    return [*lines, f"{'':>9} +{'-' * columns}", f"{'step':>9}  {first}{last:>{columns - len(first)}}"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _can_draw() -> bool:
    """Whether standard error can show block characters."""
    encoding = getattr(sys.stderr, "encoding", None) or "ascii"
    try:
        BLOCKS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def draw(curves: Curves, file: Path) -> bool:
    """Draw loss, held-out metric, learning rate and speed over the steps; return whether there was anything to draw.

    Args:
        curves: What is drawn.
        file: Picture to write, `.svg`.
    """
    panels: list[tuple[str, Points, Points]] = []
    if curves.metric == "loss":
        title = "loss, held-out loss (dots)" if curves.held_out else "loss"
        panels.append((title, curves.loss, curves.held_out))
    else:
        panels += [("loss", curves.loss, []), (f"held-out {curves.metric}", [], curves.held_out)]
    panels += [("learning rate", curves.rate, []), (f"{curves.unit} per second", curves.speed, [])]
    panels = [panel for panel in panels if len(panel[1]) > 1 or len(panel[2]) > 1]
    if not panels:
        return False
    steps = [step for _, line, dots in panels for step, _ in (*line, *dots)]
    first, last = min(steps), max(steps)
    parts: list[str] = []
    for number, (title, line, dots) in enumerate(panels):
        parts += _panel(title, line, dots, first, last, number * (HEIGHT + TOP + GAP) + TOP)
    save(LEFT + WIDTH + 30, len(panels) * (HEIGHT + TOP + GAP), parts, file)
    return True


def _panel(title: str, line: Points, dots: Points, first: float, last: float, top: float) -> list[str]:
    values = [value for _, value in (*line, *dots)]
    low, high = min(values), max(values)
    low, high = (low - 0.5, high + 0.5) if high <= low else (low, high)

    def at(step: float, value: float) -> tuple[float, float]:
        x = LEFT + WIDTH * (step - first) / max(last - first, 1)
        return x, top + HEIGHT * (1 - (value - low) / (high - low))

    parts = [text(LEFT, top - 10, title)]
    parts.append(f'<rect x="{LEFT}" y="{top:g}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>')
    parts += [text(LEFT - 6, top + 4, f"{high:.4g}", "end"), text(LEFT - 6, top + HEIGHT + 4, f"{low:.4g}", "end")]
    parts.append(text(LEFT, top + HEIGHT + 16, f"step {int(first)}"))
    parts.append(text(LEFT + WIDTH, top + HEIGHT + 16, str(int(last)), "end"))
    if len(line) > 1:
        places = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in line)
        parts.append(f'<polyline points="{places}" fill="none" stroke="black" stroke-width="1.2"/>')
    for point in dots:
        x, y = at(*point)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="white" stroke="black" stroke-width="1.5"/>')
        near_end = x > LEFT + WIDTH - 60
        below = y + 16 if y - top < 16 else y - 6
        parts.append(text(x - 8 if near_end else x + 8, below, f"{point[1]:.4g}", "end" if near_end else "start"))
    return parts
