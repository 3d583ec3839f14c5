"""Trackers write what they are told, beside the run, and nothing goes over the network."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from aitrain.errors import MissingExtraError
from aitrain.recipe import freeze
from aitrain.trainer import trackers
from aitrain.trainer.run_directory import RunDirectory
from aitrain.trainer.trackers import build_trackers, close_trackers

from .conftest import Compose

USE = """
import sys
from pathlib import Path
from aitrain.trainer.run_directory import RunDirectory
from aitrain.trainer.trackers import build_trackers, close_trackers
directory = RunDirectory.open(Path(sys.argv[1]))
(tracker,) = build_trackers(directory.config(), directory)
tracker.log_metrics({"loss": 1.25, "special_metric": 42.5}, step=1)
tracker.log_metrics({"loss": 0.75, "special_metric": 43.5}, step=2)
close_trackers([tracker])
"""


def use(run: Path, *before: str) -> subprocess.CompletedProcess[str]:
    """Log two steps in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    command = [*before, sys.executable, "-c", textwrap.dedent(USE), str(run)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def has_own_network() -> bool:
    """Whether a process may be started that sees no network at all."""
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0


def frozen(small: Compose, path: Path, *words: str) -> Path:
    path.mkdir()
    freeze(small("run.name=mine", *words), path / "run.yaml")
    return path


def test_jsonl_alone_has_no_tracker(small: Compose, tmp_path: Path) -> None:
    assert build_trackers(small(), RunDirectory(tmp_path)) == []
    close_trackers([])


def test_wandb_offline_writes_files_without_any_network_and_goes_on(small: Compose, tmp_path: Path) -> None:
    run = frozen(small, tmp_path / "run", "logger=wandb", "logger.project=verses")
    done = use(run, *(["unshare", "-rn"] if has_own_network() else []))
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr + done.stdout, "wandb's own warnings do not reach the terminal"
    (folder,) = (run / "wandb").glob("offline-run-*")
    (file,) = folder.glob("run-*.wandb")
    content = file.read_bytes()
    for word in (b"special_metric", b"43.5", b"verses", b"mine", b"asset:tiny-llama"):
        assert word in content, word

    assert use(run).returncode == 0
    ids = {folder.name.rsplit("-", 1)[-1] for folder in (run / "wandb").glob("offline-run-*")}
    assert ids == {RunDirectory(run).last_of("tracker")["wandb"]}
    assert len(RunDirectory(run).all_of("tracker")) == 1


def test_tensorboard_writes_its_event_file(small: Compose, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = frozen(small, tmp_path / "run", "logger=tensorboard")
    assert use(run).returncode == 0
    found = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [(entry.step, entry.value) for entry in found.Scalars("special_metric")] == [(1, 42.5), (2, 43.5)]


def test_tensorboard_names_its_extra(small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'aitrain\[tensorboard\]', or write logger=jsonl"):
        build_trackers(small("logger=tensorboard"), RunDirectory(tmp_path))


def test_a_resumed_run_continues_its_curves(small: Compose, tmp_path: Path) -> None:
    """Steps behind the checkpoint are done again and stand in the curve once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = frozen(small, tmp_path / "run", "logger=tensorboard")
    directory = RunDirectory(run)
    for begin, steps, value in ((0, (1, 2, 3), 1.0), (2, (3, 4), 2.0)):
        [tracker] = build_trackers(directory.config(), directory, begin)
        for step in steps:
            tracker.log_metrics({"loss": value}, step=step)
        close_trackers([tracker])
    found = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [(entry.step, entry.value) for entry in found.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
