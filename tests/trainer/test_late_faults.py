"""What is refused late is refused before a run begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aitrain.errors import RecipeError
from aitrain.tasks.registry import task_of
from aitrain.trainer.late_faults import refuse_finished, refuse_late_faults
from aitrain.trainer.progress import Progress

from .conftest import Compose, run

NONE: Any = None
"""Samples: no fault here depends on them."""


@pytest.mark.parametrize(
    ("word", "says"),
    [
        (
            "schedule.warmup_steps=9",
            "schedule.warmup_steps=9 and the decay over 0 steps are longer than the run of 4 steps",
        ),
        ('evaluate.prompts=["light"] evaluate.max_new_tokens=600', "but the model's context has 512"),
        (f'evaluate.prompts=["{"light " * 600}"]', "but the model's context has 512: shorten one of them"),
    ],
)
def test_before_anything_is_written(small: Compose, tmp_path: Path, word: str, says: str) -> None:
    words = word.split(" evaluate") if "evaluate.prompts=" in word else [word]
    words = [words[0], *(f"evaluate{more}" for more in words[1:])]
    config = small(f"run.dir={tmp_path}/run", *words)
    with pytest.raises(RecipeError, match=says):
        refuse_late_faults(task_of(config), NONE, 4)
    with pytest.raises(RecipeError, match=says):
        run(config)
    assert not (tmp_path / "run/events.jsonl").exists()


@pytest.mark.parametrize(("steps", "says"), [(4, r"trainer\.max_steps=8$"), (3, r"trainer\.max_epochs=4$")])
def test_a_finished_run_names_the_limit_that_ended_it(small: Compose, steps: int, says: str) -> None:
    config = small("trainer.max_steps=4", "trainer.max_epochs=2")
    refuse_finished(config, steps, Progress(step=steps - 1))
    with pytest.raises(RecipeError, match=rf"complete \({steps} of {steps} steps\).*{says}"):
        refuse_finished(config, steps, Progress(step=steps))
