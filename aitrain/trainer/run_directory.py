"""The run directory: the places of its parts, and the two append-only logs. No torch."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from aitrain.config import RunConfig
from aitrain.config.paths import absolute_paths
from aitrain.errors import AitrainError, RecipeError
from aitrain.io import append_line, write_text, writing
from aitrain.models.store import pinned
from aitrain.recipe import freeze, load, load_facts

_FREE = "free space on that disk, then continue with `aitrain resume {}`"


def default_directory(config: RunConfig) -> str:
    """Return the directory of a run whose recipe names none, an absolute path.

    Args:
        config: The run.
    """
    return os.path.abspath(f"runs/{config.run.name}-{time.strftime('%Y%m%d-%H%M%S')}")


def fixed(config: RunConfig) -> RunConfig:
    """Return a configuration that means the same from every directory: its paths, and a model that was fetched.

    Args:
        config: A checked configuration.

    Raises:
        ModelError: The lock file cannot be read, or names content that is not in the store.
    """
    return absolute_paths(replace(config, model=pinned(config.model)))


def whole_records(file: Path) -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines; a line cut off by a crash is left out.

    Args:
        file: The file; may not exist.
    """
    found = []
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                found.append(record)
    return found


class RunDirectory:
    """Paths and logs of one run.

    Args:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "run.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.events_file = path / "events.jsonl"
        self.export = path / "export"
        self.logs = path / "logs"

    @classmethod
    def create(cls, config: RunConfig, over_blank: bool = False) -> RunDirectory:
        """Make the directory of a new run and freeze its configuration in it.

        Args:
            config: The checked configuration; `run.dir` says where, or null for `runs/<name>-<time>`.
            over_blank: Take a directory that exists when it is blank (`is_blank`).

        Raises:
            RecipeError: The directory exists already, or cannot be made.
            AitrainError: The disk is full.
        """
        path = Path(config.run.dir or default_directory(config))
        try:
            if not (over_blank and cls.is_blank(path)):
                path.mkdir(parents=True, exist_ok=False)
        except FileExistsError:
            raise RecipeError(
                f"run.dir={path} exists already: give another run.dir, "
                f"or continue that run with `aitrain resume {path}`"
            ) from None
        except OSError as error:
            raise RecipeError(
                f"run.dir={path} cannot be created ({error.strerror}): give a folder you may write to"
            ) from None
        directory = cls(path)
        try:
            with writing(f"run.dir={path}", "free space there, or give another run.dir"):
                directory.logs.mkdir(exist_ok=True)
                freeze(replace(config, run=replace(config.run, dir=os.path.abspath(path))), directory.config_file)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return directory

    @staticmethod
    def is_blank(path: Path) -> bool:
        """Return whether a directory was made for a run that ended before it was frozen: nothing but an empty `logs/`.

        Args:
            path: The directory; false when there is none.
        """
        if path.is_symlink() or not path.is_dir():
            return False
        inside = list(path.iterdir())
        return not inside or ([entry.name for entry in inside] == ["logs"] and not any(inside[0].iterdir()))

    @property
    def is_finished(self) -> bool:
        """Whether the run is done, export included, and was not resumed since."""
        return self.last_of("started", "resumed", "finished", "failed").get("event") == "finished"

    @property
    def is_untouched(self) -> bool:
        """Whether the run has done no step yet, so that its directory can be removed without loss."""
        began = self.metrics_file.is_file() and self.metrics_file.stat().st_size > 0
        return not began and not any((self.path / "checkpoints").glob("step-*"))

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open the directory of a run that exists.

        Args:
            path: The directory.

        Raises:
            RecipeError: It is not a run directory.
        """
        if not (path / "run.yaml").is_file():
            raise RecipeError(f"{path} is not a run directory (no run.yaml): `aitrain runs` lists the runs here")
        return cls(path)

    def config(self) -> RunConfig:
        """Return the frozen configuration."""
        return load(self.config_file)

    def facts(self) -> dict[str, Any]:
        """Return the facts about model and data recorded at the start of the run; empty before that."""
        return load_facts(self.config_file)

    def freeze(self, config: RunConfig, facts: dict[str, Any] | None = None) -> None:
        """Write the configuration anew.

        Args:
            config: The new configuration.
            facts: The recorded facts; unchanged when absent.
        """
        with writing(str(self.config_file), _FREE.format(self.path)):
            freeze(config, self.config_file, self.facts() if facts is None else facts)

    def checkpoints(self, config: RunConfig) -> Path:
        """Return the folder of the checkpoints.

        Args:
            config: The frozen configuration; `checkpoint.path` may place them elsewhere.
        """
        return Path(config.checkpoint.path) if config.checkpoint.path else self.path / "checkpoints"

    def events(self) -> int:
        """Return the number of events so far."""
        return len(self.events_file.read_bytes().splitlines()) if self.events_file.is_file() else 0

    def last_of(self, *kinds: str) -> dict[str, Any]:
        """Return the newest event of some kinds; empty when there is none.

        Args:
            kinds: What happened.
        """
        found = self.all_of(*kinds)
        return found[-1] if found else {}

    def all_of(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the events of some kinds, oldest first.

        Args:
            kinds: What happened.
        """
        return [entry for entry in whole_records(self.events_file) if entry.get("event") in kinds]

    def learned(self, step: int, kept: dict[str, Any]) -> dict[str, Any]:
        """Return what a task had learned from its data at a step: from a late evaluation if there was one, else as kept
        in the checkpoint.

        Args:
            step: Step of a checkpoint.
            kept: As kept in the checkpoint.
        """
        late = [entry["values"] for entry in self.all_of("learned") if entry["step"] == step]
        found: dict[str, Any] = late[-1] if late else kept
        return found

    def event(self, kind: str, **facts: Any) -> None:
        """Append one event.

        Args:
            kind: What happened: started, resumed, evaluated, checkpoint, signal, finished ...
            facts: Plain values that belong to it.
        """
        entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": kind, **facts}
        with writing(str(self.events_file), _FREE.format(self.path)):
            append_line(self.events_file, json.dumps(entry, ensure_ascii=False))

    def note_failure(self, why: str) -> None:
        """Append that the run failed, if that can still be written.

        Args:
            why: What ended it.
        """
        try:
            self.event("failed", error=why)
        except AitrainError:  # a full disk is often the reason, which is already reported
            return

    def metrics(self, record: dict[str, Any]) -> None:
        """Append the record of one optimizer step.

        Args:
            record: The keys of the design; values are plain or null.
        """
        with writing(str(self.metrics_file), _FREE.format(self.path)):
            append_line(self.metrics_file, json.dumps(record))

    def amend_last_metrics(self, step: int, more: dict[str, Any]) -> None:
        """Add values to the record of the last step.

        Args:
            step: Its number.
            more: What was measured after it was written.
        """
        records = whole_records(self.metrics_file)
        if records and records[-1]["step"] == step:
            records[-1] |= more
            write_text(self.metrics_file, "".join(f"{json.dumps(record)}\n" for record in records))

    def forget_steps_after(self, step: int) -> None:
        """Drop the records of steps that will be done again, so that each step is in the file once.

        Args:
            step: Last optimizer step that the resumed checkpoint has done.
        """
        if not self.metrics_file.is_file():
            return
        kept = [record for record in whole_records(self.metrics_file) if record.get("step", step + 1) <= step]
        text = "".join(f"{json.dumps(record)}\n" for record in kept)
        if text.encode() != self.metrics_file.read_bytes():
            write_text(self.metrics_file, text)
