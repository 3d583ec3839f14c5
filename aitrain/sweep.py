"""Lists and ranges of alternatives on the command line become the words of many runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Glob

from aitrain.config import GROUPS, RunConfig
from aitrain.config.values import Faults
from aitrain.errors import RecipeError
from aitrain.recipe import parse_overrides


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
                f"{key}={given[0]} is the same for several of the {len(configs)} runs: leave it out, or let it depend "
                f"on what differs, for instance '{key}={given[0]}-${{seed}}'"
            )
