"""Turns between real processes: never two at once, every step of every process, and a death is told."""

import json
import os
import sys
from pathlib import Path

import pytest

from aitrain.bench.interleaved import Player, play
from aitrain.errors import AitrainError

TRAINS = """
import json, pathlib, sys, time
from aitrain.bench.interleaved import StepClock
clock = StepClock()
for step in range(int(sys.argv[2])):
    time.sleep(0.01)
    clock.end_step()
pathlib.Path(sys.argv[1]).write_text(json.dumps([clock.begins, clock.ends]))
sys.exit(int(sys.argv[3]))
"""


def player(name: str, file: Path, steps: int = 4, code: int = 0) -> Player:
    started = Player(name, [sys.executable, "-c", TRAINS, str(file), str(steps), str(code)], os.environ)
    started.wait_for_step()
    return started


def test_no_two_steps_overlap_and_none_is_lost(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    play([player(file.name, file) for file in files], steps=4)
    spans = []
    for file in files:
        begins, ends = json.loads(file.read_text())
        assert len(ends) == 4
        spans += list(zip(begins, ends, strict=False))[1:]  # the first step is the start, nobody waits for it
    spans.sort()
    assert all(end <= begin for (_, end), (begin, _) in zip(spans, spans[1:], strict=False))


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    with pytest.raises(AitrainError, match="early did not run: exit code 0"):
        play([player("early", tmp_path / "a", steps=2)], steps=4)
    gone = player("gone", tmp_path / "c", steps=2)
    gone.kill()
    with pytest.raises(AitrainError, match="gone did not run: exit code -9"):
        gone.step()
    with pytest.raises(AitrainError, match="late did not run: exit code 7"):
        play([player("late", tmp_path / "b", code=7)], steps=4)


def test_without_a_caller_of_turns_the_clock_just_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from aitrain.bench.interleaved import TURN, StepClock

    monkeypatch.delenv(TURN, raising=False)
    clock = StepClock()
    clock.end_step()
    clock.end_step()
    assert clock.begins[1] >= clock.ends[0] and len(clock.ends) == 2
