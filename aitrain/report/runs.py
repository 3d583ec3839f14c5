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
    "launched": "starting",
    "started": "running or broken off",
    "resumed": "running or broken off",
    "finished": "finished",
    "waiting": "stopped, can be resumed",
    "stopped": "stopped, can be resumed",
    "failed": "failed",
    "rank_failed": "a rank failed, can be resumed",
    "given_up": "given up",
}
"""Event -> state of a run, until a later one of these events."""


@dataclass(frozen=True)
class RunSummary:
    """One run as `aitrain runs` and `aitrain status` show it."""

    path: Path
    """Run directory."""

    steps: int
    """Optimizer steps done."""

    loss: float | None
    """Loss of the last step; `None` = no step yet."""

    state: str
    """Where the run stands, by its own events."""

    is_over: bool = False
    """Whether it is finished, so that it is in no queue."""

    total_steps: int | None = None
    """Optimizer steps of the whole run; `None` = not known yet."""

    speed: tuple[float, str] | None = None
    """Units per second over all ranks in the last step, and what the unit is."""

    step_time_s: float | None = None
    """Seconds of the last step."""

    checkpoint: int | None = None
    """Step of the newest checkpoint; `None` = there is none."""

    job: str | None = None
    """Slurm job that runs it or will; `None` = none does."""

    cluster: str | None = None
    """Profile that it was submitted with."""

    trouble: str | None = None
    """What ended it the last time, if that was not on purpose."""

    restarts: int = 0
    """How often a job has gone on with it by itself."""

    best_validation: float | None = None
    """Smallest held-out loss so far; `None` = never measured."""

    host: str | None = None
    """Where rank 0 runs, or ran."""

    pid: int | None = None
    """Its process there."""


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
    events = list(_newest(run / "events.jsonl"))
    kind = next((event["event"] for event in events if event.get("event") in STATES), None)

    def last(key: str, *kinds: str) -> Any:
        return next((event[key] for event in events if event.get("event") in kinds and key in event), None)

    trouble = next((event for event in events if event.get("event") in (*STATES, "checkpoint")), {})
    return RunSummary(
        path=run,
        steps=int(metrics.get("step", 0)),
        loss=metrics.get("loss"),
        state=STATES.get(kind or "", "not started"),
        is_over=kind == "finished",
        total_steps=last("steps", "started", "resumed"),
        speed=next(
            ((value, key.removesuffix("_per_s")) for key, value in metrics.items() if key.endswith("_per_s")), None
        ),
        step_time_s=metrics.get("step_time_s"),
        checkpoint=last("step", "checkpoint"),
        job=last("job", "launched", "submitted"),
        cluster=last("cluster", "submitted"),
        trouble=trouble.get("reason") or trouble.get("error"),
        restarts=sum(event.get("event") == "launched" and bool(event.get("automatic")) for event in events),
        best_validation=min(
            (event["val_loss"] for event in events if isinstance(event.get("val_loss"), float)),
            default=None,
        ),
        host=last("host", "started", "resumed"),
        pid=last("pid", "started", "resumed"),
    )


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
