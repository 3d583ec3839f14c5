"""The runs under a folder, read from their `run.yaml`, `metrics.jsonl` and `events.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aitrain.config.values import format_value
from aitrain.errors import AitrainError

TAIL_BYTES = 1 << 20
STATES = {
    "submitted": "submitted, not started",
    "launched": "starting",
    "started": "running or interrupted",
    "resumed": "running or interrupted",
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
    """State of the run, from its own events."""

    is_over: bool = False
    """Whether it is finished, and so is not queued."""

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
    """What ended it last, if that was not on purpose."""

    restarts: int = 0
    """How often a job has continued it automatically."""

    best_validation: float | None = None
    """Best value of the held-out metric so far; `None` = never measured."""

    metric: str = "loss"
    """Name of that metric."""

    greater_is_better: bool = False
    """Whether more of it is better."""

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
    """Return the state of one run.

    Args:
        run: Run directory.
    """
    metrics = next(_newest(run / "metrics.jsonl"), {})
    events = list(_newest(run / "events.jsonl"))
    kind = next((event["event"] for event in events if event.get("event") in STATES), None)

    def last(key: str, *kinds: str) -> Any:
        return next((event[key] for event in events if event.get("event") in kinds and key in event), None)

    metric, greater = (
        last("metric", "started", "resumed") or "loss",
        bool(last("greater_is_better", "started", "resumed")),
    )
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
        best_validation=(max if greater else min)(
            (event[f"val_{metric}"] for event in events if isinstance(event.get(f"val_{metric}"), float)),
            default=None,
        ),
        metric=metric,
        greater_is_better=greater,
        host=last("host", "started", "resumed"),
        pid=last("pid", "started", "resumed"),
    )


def differences(found: Sequence[RunSummary], most: int = 4) -> dict[Path, str]:
    """Return the keys in which runs differ from each other, as `key=value` words; of one run, nothing.

    Args:
        found: The runs.
        most: Words that are given per run; more are counted.
    """
    leaves = {run.path: _leaves(run.path / "run.yaml") for run in found}
    names = {name for given in leaves.values() for name in given if not name.startswith(_NOT_COMPARED)}
    differing = [name for name in sorted(names) if len({json.dumps(given.get(name)) for given in leaves.values()}) > 1]
    # keys of a group follow from its option, which is already shown
    differing = [name for name in differing if not any(name.startswith(f"{other}.") for other in differing)]
    words: dict[Path, list[str]] = {}
    for path, given in leaves.items():
        words[path] = [f"{name}={format_value(given[name])}" for name in differing if name in given]
    return {
        path: " ".join(each[:most]) + (f" and {len(each) - most} more" if len(each) > most else "")
        for path, each in words.items()
    }


_NOT_COMPARED = ("run.", "facts", "cluster.", "logger.")
"""Prefixes of keys that do not affect training."""


def _leaves(file: Path) -> dict[str, Any]:
    """Return the dotted keys of a frozen configuration; none if it cannot be read."""
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    found: dict[str, Any] = {}

    def walk(values: Any, prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                found[f"{prefix}{name}".removesuffix(".option")] = value

    walk(data if isinstance(data, dict) else {}, "")
    return found


def _newest(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete records at the end of a file of JSON lines, the newest first."""
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
