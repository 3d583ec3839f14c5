"""The runs under a folder, read from their `run.yaml`, `metrics.jsonl` and `events.jsonl`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aitrain.errors import AitrainError

ENDINGS = {"finished": "finished", "stopped": "stopped", "signal": "stopped", "failed": "failed", "guard": "failed"}
"""Event -> state of a run whose last event it is; after any other event it is running, or broke off."""


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
    metrics = _last(run / "metrics.jsonl")
    event = str(_last(run / "events.jsonl").get("event", ""))
    state = ENDINGS.get(event, f"running or broken off (last: {event or 'nothing'})")
    return RunSummary(run, int(metrics.get("step", 0)), metrics.get("loss"), state)


def _last(file: Path) -> dict[str, Any]:
    """Return the last whole record of a file of JSON lines; empty when there is none."""
    if not file.is_file():
        return {}
    with open(file, "rb") as stream:
        end = stream.seek(0, 2)
        stream.seek(max(0, end - 65536))
        lines = stream.read().splitlines()
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # a line that is being written just now, or was cut by a crash
            continue
        if isinstance(record, dict):
            return record
    return {}
