"""Pictures of what a run has reached, drawn with matplotlib: readable in black and white, with the numbers in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aitrain.io.imports import without_collection

LARGEST = 30
"""Classes of a confusion matrix; of more, the commonest are drawn."""


def _axes(width: float, height: float) -> tuple[Any, Any]:
    with without_collection():
        import matplotlib

        matplotlib.use("svg")
        matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "aitrain"}  # small, and the same each time
        from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    return figure, axes


def _save(figure: Any, file: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def confusion_matrix(guesses: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], file: Path) -> None:
    """Draw how often each class was taken for each other.

    Args:
        guesses: int64 `(N,)`.
        labels: int64 `(N,)`.
        classes: Names, in the order of the numbers.
        file: Picture to write.
    """
    kept = torch.bincount(labels, minlength=len(classes)).argsort(descending=True)[:LARGEST].sort().values.tolist()
    names = [classes[number] for number in kept]
    counts = torch.tensor([[int(((labels == row) & (guesses == column)).sum()) for column in kept] for row in kept])
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = 2.5 + 0.5 * len(kept)
    figure, axes = _axes(side + 0.5, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(kept)):
        for column in range(len(kept)):
            if counts[row, column]:
                colour = "white" if shares[row, column] > 0.6 else "black"
                axes.text(column, row, int(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(kept)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(kept)), names)
    axes.set_xlabel("said by the model")
    axes.set_ylabel("right")
    more = f", the commonest {len(kept)} of {len(classes)} classes" if len(kept) < len(classes) else ""
    axes.set_title(f"{int((guesses == labels).sum())} of {len(labels)} held-out samples right{more}", fontsize=9)
    _save(figure, file)


def bars(names: Sequence[str], values: Sequence[float], title: str, file: Path) -> None:
    """Draw shares from 0 to 1 as bars, with their numbers.

    Args:
        names: One per bar.
        values: From 0 to 1.
        title: What they are.
        file: Picture to write.
    """
    figure, axes = _axes(6.0, 1.0 + 0.35 * len(names))
    drawn = axes.barh(range(len(names)), values, color="#4c78a8")
    axes.bar_label(drawn, [f"{value:.2f}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_title(title, fontsize=9)
    _save(figure, file)
