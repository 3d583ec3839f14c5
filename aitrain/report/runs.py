"""The runs under a folder, read from their `run.yaml`, `metrics.jsonl` and `events.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aitrain.errors import AitrainError

TAIL_BYTES = 1 << 20
STATES = {
    "submitted": "submitted, not started",
    "started": "running or broken off",
    "resumed": "running or broken off",
    "finished": "finished",
    "waiting": "stopped, can be resumed",
    "stopped": "stopped, can be resumed",
    "failed": "failed",
}
"""Event -> state of a run, until a later one of these events."""


@dataclass(frozen=True)
class RunSummary:
    """One run as `aitrain runs` lists it."""

    path: Path
    """Run directory."""

    steps: int
    """Optimizer steps done."""

    loss: float | None
    """Loss of the last step; `None` = no step yet."""

    state: str
    """Where the run stands."""


def runs(folder: Path) -> list[RunSummary]:
    """Return every run directly under a folder, the oldest first.

    Args:
        folder: Folder of run directories, or one run directory.

    Raises:
        AitrainError: The folder does not exist.
    """
    if not folder.is_dir():
        raise AitrainError(f"{folder} is not a folder: runs are written to runs/ unless run.dir says otherwise")
    places = [folder] if (folder / "run.yaml").is_file() else [path.parent for path in folder.glob("*/run.yaml")]
    return [summary(place) for place in sorted(places, key=lambda place: (place / "run.yaml").stat().st_mtime)]


def summary(run: Path) -> RunSummary:
    """Return where one run stands.

    Args:
        run: Run directory.
    """
    metrics = next(_newest(run / "metrics.jsonl"), {})
    known = (STATES[record["event"]] for record in _newest(run / "events.jsonl") if record.get("event") in STATES)
    return RunSummary(run, int(metrics.get("step", 0)), metrics.get("loss"), next(known, "not started"))


def _newest(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole records at the end of a file of JSON lines, the newest first."""
    if not file.is_file():
        return
    with open(file, "rb") as stream:
        end = stream.seek(0, 2)
        stream.seek(max(0, end - TAIL_BYTES))
        lines = stream.read().splitlines()
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # a line that is being written just now, or was cut by a crash
            continue
        if isinstance(record, dict):
            yield record
