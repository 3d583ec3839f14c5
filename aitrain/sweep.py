"""Sweeps: lists and ranges of values on the command line are expanded into runs, which are run one by one."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob

from aitrain.config import GROUPS, RunConfig
from aitrain.config.run import SWEEP
from aitrain.config.values import Faults
from aitrain.errors import EXIT_DONE, RecipeError
from aitrain.io import write_text
from aitrain.recipe import compose, parse_overrides


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of every run that lists and ranges of alternatives ask for.

    Args:
        overrides: Words `key=a,b`, `key=range(1,4)` or `key=choice(a,b)` in Hydra's grammar, beside plain ones.

    Returns:
        One list of plain overrides per run, the last word varying fastest.

    Raises:
        RecipeError: A word cannot be read.
    """
    faults, each = Faults(), []
    for change in parse_overrides(overrides, faults):
        value: Any = change._value  # Hydra's own sweeper reads a glob here: it has no public name
        if isinstance(value, Glob):
            options = list(GROUPS.get(change.key_or_group, {}))
            each.append([f"{change.key_or_group}={name}" for name in value.filter(options)])
        elif change.is_sweep_override():
            each.append([f"{change.key_or_group}={word}" for word in change.sweep_string_iterator()])
        else:
            each.append([str(change.input_line)])
        if not each[-1]:
            faults.add(f"{change.input_line} matches no option: write the options, for instance optim=adamw,muon")
    if faults.lines:
        raise RecipeError(faults.lines)
    return [list(words) for words in itertools.product(*each)]


def refuse_shared_directories(configs: Sequence[RunConfig]) -> None:
    """Refuse runs of a sweep that would write into one directory.

    Args:
        configs: The configurations of its runs.

    Raises:
        RecipeError: Two of them have the same `run.dir` or `checkpoint.path`.
    """
    for key, places in (
        ("run.dir", [config.run.dir for config in configs]),
        ("checkpoint.path", [config.checkpoint.path for config in configs]),
    ):
        given = [place for place in places if place is not None]
        if len(set(given)) < len(given):
            raise RecipeError(
                f"{key}={given[0]} is the same for several of the {len(configs)} runs: leave it out, or make it "
                f"depend on a swept key, for instance '{key}={given[0]}-${{seed}}'"
            )


def train_each(recipe: str, overrides: list[str]) -> tuple[int, Path | None]:
    """Train every combination in its own process; stop at the first one that fails.

    Where the words do not say where runs go, each gets its own directory in a folder of the whole sweep, which says in
    `sweep.json` in what they differ.

    Args:
        recipe: Name or path of a recipe.
        overrides: Words with lists or ranges of alternatives.

    Returns:
        The exit code: of the run that did not end well, else done; and the folder of the sweep, if it has one.

    Raises:
        RecipeError: A combination is refused; no run is started then.
    """
    combinations = sweep(overrides)
    configs = [compose(recipe, words) for words in combinations]
    refuse_shared_directories(configs)
    folder: Path | None = None
    if configs[0].run.dir is None:
        folder = Path(os.path.abspath(f"runs/{configs[0].run.name}-sweep-{time.strftime('%Y%m%d-%H%M%S')}"))
        folder.mkdir(parents=True)
        differing = [
            [word for word in words if any(word not in others for others in combinations)] for words in combinations
        ]
        write_text(folder / SWEEP, json.dumps([" ".join(words) for words in differing], indent=1) + "\n")
        combinations = [[*words, f"run.dir={folder}/{number}"] for number, words in enumerate(combinations)]
    for number, words in enumerate(combinations, 1):
        print(f"[{number}/{len(combinations)}] {' '.join([recipe, *words])}", flush=True)
        code = _wait_for([sys.executable, "-m", "aitrain", "train", recipe, *words])
        if code:
            left = len(combinations) - number
            print(f"run {number} ended with exit code {code}; {left} runs were not started", file=sys.stderr)
            return code, folder
    return EXIT_DONE, folder


def _wait_for(command: list[str]) -> int:
    """Run a training and return its exit code; the training process handles Ctrl-C and SIGTERM.

    Ctrl-C reaches it from the terminal; SIGTERM is passed on. Handlers in Python are not inherited by what is started.
    """
    started: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        for child in started:
            child.send_signal(number)

    before_int = signal.signal(signal.SIGINT, lambda *_: None)
    before_term = signal.signal(signal.SIGTERM, pass_on)
    try:
        started.append(subprocess.Popen(command))
        return started[0].wait()
    finally:
        signal.signal(signal.SIGINT, before_int)
        signal.signal(signal.SIGTERM, before_term)
