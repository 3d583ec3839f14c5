"""From a recipe and overrides to a checked `RunConfig`, and back from `run.yaml`: the only place with Hydra."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from aitrain import __version__
from aitrain.composition import Composition
from aitrain.config import GROUPS, RunConfig
from aitrain.config.describe import describe
from aitrain.config.frozen import READING, RESUMABLE, from_plain, to_plain
from aitrain.config.manual import all_keys, manual
from aitrain.config.source import find, layers
from aitrain.config.synonyms import question, right_name
from aitrain.config.values import Faults, Key, convert, format_value, keys, quoted
from aitrain.errors import RecipeError
from aitrain.io import write_text

__all__ = [
    "all_keys",
    "amend",
    "compose",
    "describe",
    "find",
    "freeze",
    "load",
    "load_facts",
    "manual",
    "parse_overrides",
]

FACTS = "facts"
"""Key of `run.yaml` under which a run keeps the facts found at its start; not a key of recipes."""

_log = logging.getLogger(__name__)


def compose(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the checked configuration of a recipe with overrides.

    Hydra composes the chosen option of every group; the values are then set one by one, so that every fault is found.

    Args:
        recipe: Name of a shipped recipe, or path of a YAML file.
        overrides: Words `key=value` or `group=option` in Hydra's grammar; the last one wins.

    Raises:
        RecipeError: Every fault of the recipe and of the overrides, one sentence each.
    """
    faults = Faults()
    path = find(recipe)
    recipes = layers(path, faults)
    changes = []
    for change in parse_overrides(overrides, faults):
        if change.is_sweep_override():
            faults.add(
                f"{change.input_line} lists alternatives, which `check`, `train` and `submit` run with -m: "
                "give one, or put quotes or [] around it"
            )
        else:
            changes.append(change)
    composition = Composition(faults)
    for layer in recipes:
        for group, option in layer.choices.items():
            composition.choose(group, option, layer.where("defaults"))
    for change in changes:
        if _picks_option(change):
            composition.choose(change.key_or_group, format_value(change.value()), "")
    composition.build()
    for preset in composition.presets:
        for name, value in _leaves({preset.group: preset.values}, composition.table):
            composition.set(name, value, None, f"{preset.path}: ")
    optimizer = "adamw"
    for layer in recipes:
        optimizer = layer.choices.get("optim", optimizer)
        for name, value in _leaves(layer.values, composition.table):
            if name == "optim.lr" and not composition.suits(optimizer):
                composition.leave_rate(value, optimizer)
                continue
            composition.set(name, value, None, layer.where(name))
    for change in changes:
        if not _picks_option(change):
            for name, value in _leaves({change.key_or_group: change.value()}, composition.table):
                composition.set(name, value, _given(change), "")
    config = composition.finish(path.stem)
    if not any(change.key_or_group == "optim.lr" for change in changes):
        for note in composition.notes[-1:]:
            _log.warning(note)
    return config


def _picks_option(change: Override) -> bool:
    """Return whether an override chooses an option and sets no key."""
    return change.key_or_group in GROUPS and not isinstance(change.value(), dict)


def parse_overrides(overrides: Sequence[str], faults: Faults) -> list[Override]:
    """Parse the words of the command line, each by itself.

    Args:
        overrides: Words `key=value` in Hydra's grammar.
        faults: Takes what cannot be read or is refused.

    Returns:
        What could be read, in order.
    """
    parser, parsed = OverridesParser.create(), []
    for word in overrides:
        plain, _, value = word.lstrip("+~").partition("=")
        try:
            # Hydra's grammar wants quotes around ~, which a shell does not expand after a key with a dot, and around
            # letters that are not ASCII: a column Zähler, a file café.csv
            home = value.startswith("~") and not any(sign in value for sign in "\"' ,")
            foreign = not value.isascii() and re.fullmatch(r"[\w ./:@+-]+", value) is not None
            change = parser.parse_override(f"{word.partition('=')[0]}={quoted(value)}" if home or foreign else word)
        except (HydraException, ValueError, RecursionError):  # the last two: a number of 5,000 digits, 500 brackets
            if "=" in word:
                faults.add(f"{word} cannot be read: put the value in quotes, '{plain}={quoted(value)}'", plain)
            else:
                faults.add(f"{word} is not key=value: write for instance optim.lr=2e-5", word)
            continue
        if change.type is OverrideType.DEL:
            rule = f"keys cannot be removed: write {plain}=null to unset one"
            faults.add(f"{word}: ~ is refused, because {rule}", plain)
        elif change.type is not OverrideType.CHANGE:
            rule = f"it would let a misspelt key pass: write {plain}={value} to change a key"
            faults.add(f"{word}: {'++' if word.startswith('++') else '+'} is refused, because {rule}", plain)
        elif change.package is not None:
            faults.add(f"{word}: @ is refused, because packages are fixed: write group=option or key=value", plain)
        else:
            parsed.append(change)
    return parsed


def _leaves(values: dict[str, Any], table: dict[str, Key], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values down to the keys of the table."""
    for word, value in values.items():
        name = f"{prefix}{word}"
        if name not in table and isinstance(value, dict) and value:
            yield from _leaves(value, table, name + ".")
        else:
            yield name, value


def freeze(config: RunConfig, path: Path, facts: dict[str, Any] | None = None) -> None:
    """Write a configuration as `run.yaml` in one step.

    Args:
        config: A checked configuration.
        path: File to write; its folder must exist.
        facts: Facts recorded at the start of the run, to keep with it.
    """
    content = to_plain(config) | ({FACTS: facts} if facts else {})
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    write_text(path, f"# Frozen by aitrain {__version__}: every rank and every restart reads this file.\n{text}")


def load(path: Path) -> RunConfig:
    """Read back the configuration that `freeze` wrote.

    Args:
        path: A `run.yaml`.

    Raises:
        RecipeError: The file is absent, broken, or holds keys or values that do not exist.
    """
    data = _frozen(path)
    data.pop(FACTS, None)
    try:
        return from_plain(data)
    except RecipeError as error:
        raise RecipeError([f"{path}: {fault}" for fault in error.faults]) from error


def load_facts(path: Path) -> dict[str, Any]:
    """Read back the facts that `freeze` wrote; empty when there are none.

    Args:
        path: A `run.yaml`.

    Raises:
        RecipeError: The file is absent or broken.
    """
    facts = _frozen(path).get(FACTS)
    return facts if isinstance(facts, dict) else {}


def _frozen(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path} is not a frozen configuration: it holds no keys")
    return data


def amend(config: RunConfig, overrides: Sequence[str], for_file: bool = False) -> RunConfig:
    """Return the configuration of a run that is resumed, or used on a file, with some keys changed.

    Args:
        config: What the run was started with.
        overrides: Words `key=value`; only keys that keep the promise of equal losses may change.
        for_file: Whether the run's model is used on a file: then only how that is read may change.

    Raises:
        RecipeError: A key that may not change, or any fault that `compose` finds in overrides.
    """
    faults, data = Faults(), to_plain(config)
    choices = {group: type(getattr(config, group)) for group in GROUPS}
    changes: list[tuple[str, Any, str]] = []
    for change in parse_overrides(overrides, faults):
        if change.is_sweep_override():
            faults.add(f"{change.input_line} lists alternatives: give one, or put quotes or [] around it")
        else:
            changes.append((change.key_or_group, change.value(), _given(change)))
    for name, value, _ in changes:
        if name in GROUPS and name in RESUMABLE and format_value(value) in GROUPS[name]:
            choices[name], data[name] = GROUPS[name][format_value(value)], {"option": value}
    table = keys(RunConfig, choices)
    for name, value, given in changes:
        if name in GROUPS and name in RESUMABLE and not for_file:
            if format_value(value) not in GROUPS[name]:
                faults.add(
                    f"{name}={format_value(value)} is not an option of {name}: choose from {', '.join(GROUPS[name])}"
                )
        elif name not in table and name not in GROUPS:
            guess = right_name(name, table)
            faults.add(f"{name} is not a key" + (f": {question(guess)}" if guess else ""))
        elif for_file and name not in READING:
            faults.add(f"{name} belongs to the run, whose recipe is frozen; here you can give {', '.join(READING)}")
        elif not for_file and not name.startswith(RESUMABLE):
            rule = "cannot change when a run is resumed, because losses depend on it: start a new run with it"
            if name == "checkpoint.path":
                rule = "cannot change when a run is resumed, because its checkpoints are there: leave it as it is"
            faults.add(f"{name} {rule}")
        else:
            try:
                group, _, word = name.partition(".")
                data[group][word] = convert(table[name], value, given)
            except RecipeError as error:
                faults.add(str(error), name)
    amended = config if faults.lines else from_plain(data)
    if faults.lines or amended.check():
        raise RecipeError([*faults.lines, *amended.check()])
    return amended


def _given(change: Override) -> str:
    """Return the user's own characters of a value."""
    return str(change.input_line).split("=", 1)[1].strip()
