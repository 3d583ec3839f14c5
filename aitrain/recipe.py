"""From a recipe and overrides to a checked `RunConfig`, and back from `run.yaml`: the only place with Hydra."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from aitrain import __version__
from aitrain.config import GROUPS, OPTION_OF, RunConfig
from aitrain.config.describe import describe
from aitrain.config.frozen import RESUMABLE, from_plain, to_plain
from aitrain.config.manual import all_keys, field_docs, manual
from aitrain.config.source import CONFIGS, find, layers
from aitrain.config.synonyms import question, right_name
from aitrain.config.values import Faults, Key, convert, keys, nearest, shown, stand_in
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
"""Key of `run.yaml` under which a run keeps what it found out at its start; no key of a recipe."""

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
            word = change.input_line
            faults.add(f"{word} lists alternatives: add -m to run each in turn, or put quotes or [] around it")
        else:
            changes.append(change)
    composition = _Composition(faults)
    for layer in recipes:
        for group, option in layer.choices.items():
            composition.choose(group, option, layer.where("defaults"))
    for change in changes:
        if _picks_option(change):
            composition.choose(change.key_or_group, shown(change.value()), "")
    composition.build()
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


class _Composition:
    """A configuration in the making, with the faults found on the way."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.options: dict[str, str] = {}
        self.guessed: set[str] = set()
        self.config = OmegaConf.create()
        self.table: dict[str, Key] = {}
        self.notes: list[str] = []

    def choose(self, group: str, option: str, where: str) -> None:
        """Choose an option; in place of one that does not exist the nearest is taken, so that keys can be checked."""
        self.guessed.discard(group)
        if option in GROUPS[group]:
            self.options[group] = option
            return
        self.guessed.add(group)
        guess = nearest(option, GROUPS[group])
        hint = f"did you mean {guess}? " if guess else ""
        there = f"There are {', '.join(GROUPS[group])}"
        self.faults.add(f"{where}{group}={option} is no option of {group}: {hint}{there}", f"{group}=")
        if guess:
            self.options[group] = guess

    def build(self) -> None:
        """Let Hydra compose the chosen options."""
        self.config = copy.deepcopy(_options(tuple(self.options.items())))
        self.table = keys(RunConfig, {group: self.chosen(group) for group in GROUPS})

    def chosen(self, group: str) -> type:
        """Return the dataclass of the option chosen for a group."""
        found = OmegaConf.get_type(self.config, group)
        assert found is not None, f"{group} has no schema"
        return found

    def set(self, name: str, value: Any, given: str | None, where: str) -> None:
        """Set one key, or note why not."""
        if name not in self.table:
            self._refuse(name, value, where)
            return
        try:
            # `${...}` gets its type when it is resolved
            OmegaConf.update(
                self.config, name, value if "${" in str(value) else convert(self.table[name], value, given)
            )
        except RecipeError as error:
            self.faults.add(f"{where}{error}", name)
        except OmegaConfBaseException:
            rule = "${...} refers to another key; write \\${ for the characters themselves"
            self.faults.add(f"{where}{name}={shown(value)}: {rule}", name)

    def suits(self, optimizer: str) -> bool:
        """Return whether a learning rate that was chosen for an optimizer means the same for the one of this run."""
        return OPTION_OF[self.chosen("optim")].split("_")[0] == optimizer.split("_")[0]

    def leave_rate(self, value: Any, optimizer: str) -> None:
        """Say that a recipe's learning rate is not carried over to another optimizer."""
        now = OPTION_OF[self.chosen("optim")]
        own = shown(OmegaConf.select(self.config, "optim.lr"))
        self.notes.append(
            f"optim.lr={shown(value)} in the recipe is meant for optim={optimizer}: optim={now} starts from its own "
            f"default, optim.lr={own}; write optim.lr=... to choose another"
        )

    def _refuse(self, name: str, value: Any, where: str) -> None:
        """Note a key that does not exist."""
        group = name.split(".", 1)[0]
        if any(key.startswith(name + ".") for key in self.table):
            if where and (value is None or value == {}):
                return  # a group in a file whose keys are all commented out
            text = shown(value)
            rule = f"{name}={text}: {name} is a group of keys; `aitrain show {name}` lists them"
            if name in GROUPS:
                rule = f"{name}: {text} chooses an option: write `- override {name}: {text}` in the defaults list"
            self.faults.add(where + rule, f"{name}.")
            return
        holders = _holders(name)
        if holders and group in self.guessed:
            return
        if holders:
            now = OPTION_OF[self.chosen(group)]
            belongs = f"{name} belongs to {group}={' or '.join(holders)}, but this run has {group}={now}"
            self.faults.add(f"{where}{belongs}: choose {group}={holders[0]} or remove {name}", name)
            return
        guess = right_name(name, self.table) or nearest(name, {key.split(".", 1)[0] for key in self.table})
        groups = ", ".join(field.name for field in fields(RunConfig))
        hint = question(guess) if guess else f"the groups are {groups}; `aitrain show` lists the keys"
        self.faults.add(f"{where}{name} is not a key: {hint}", name, guess)

    def finish(self, stem: str) -> RunConfig:
        """Resolve, find what is missing, check the rules; return the configuration or raise with every fault."""
        for name, key in self.table.items():
            try:
                value = OmegaConf.select(self.config, name, throw_on_missing=True)
                if OmegaConf.is_list(value):
                    OmegaConf.to_container(value, resolve=True)
            except MissingMandatoryValue:
                if name not in self.faults.keys:
                    doc = field_docs(key.owner)[name.rsplit(".", 1)[-1]]
                    self.faults.add(f"{name} is missing: write {name}=..., {doc[0].lower()}{doc[1:]}", name)
                OmegaConf.update(self.config, name, stand_in(key))
            except OmegaConfBaseException as error:
                reason = str(error).splitlines()[0].removeprefix("KeyError raised while resolving interpolation: ")
                self.faults.add(f"{name}: its ${{...}} cannot be resolved: {reason}", name)
                OmegaConf.update(self.config, name, stand_in(key))
        result = OmegaConf.to_object(self.config)
        assert isinstance(result, RunConfig), f"Hydra made a {type(result)}"
        rules = [rule for rule in result.check() if not self.faults.mention(rule)]
        if self.faults.lines or rules:
            raise RecipeError(list(dict.fromkeys([*self.faults.lines, *rules])))
        result.run.name = result.run.name or stem
        return result


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
            # a shell leaves ~ alone behind a key with a dot, and Hydra's grammar wants it in quotes
            home = value.startswith("~") and not any(sign in value for sign in "\"' ,")
            change = parser.parse_override(f"{word.partition('=')[0]}='{value}'" if home else word)
        except (HydraException, ValueError, RecursionError):  # the last two: a number of 5,000 digits, 500 brackets
            if "=" in word:
                quoted = value.replace("\\", "\\\\").replace('"', '\\"')
                faults.add(f"{word} cannot be read: put the value in quotes, '{plain}=\"{quoted}\"'", plain)
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


@cache
def _options(chosen: tuple[tuple[str, str], ...]) -> DictConfig:
    """Return `base` with these options, every YAML option on its schema."""
    _register()
    with initialize_config_dir(str(CONFIGS.resolve()), version_base="1.3"):
        return hydra_compose("base", [f"{group}={option}" for group, option in chosen])


@cache
def _register() -> None:
    """Tell Hydra the schemas."""
    store = ConfigStore.instance()
    store.store(name="_run", node=RunConfig)
    for group, options in GROUPS.items():
        for option, schema in options.items():
            store.store(group=group, name=f"_{option}", node=schema)


def _leaves(values: dict[str, Any], table: dict[str, Key], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values down to the keys of the table."""
    for word, value in values.items():
        name = f"{prefix}{word}"
        if name not in table and isinstance(value, dict) and value:
            yield from _leaves(value, table, name + ".")
        else:
            yield name, value


def _holders(name: str) -> list[str]:
    """Return the options of a key's group that have this key."""
    group, _, word = name.partition(".")
    return [option for option, cls in GROUPS.get(group, {}).items() if word in {field.name for field in fields(cls)}]


def freeze(config: RunConfig, path: Path, facts: dict[str, Any] | None = None) -> None:
    """Write a configuration as `run.yaml` in one step.

    Args:
        config: A checked configuration.
        path: File to write; its folder must exist.
        facts: What the run found out at its start, to stand beside it.
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


def amend(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return the configuration of a run that is resumed with some keys changed.

    Args:
        config: What the run was started with.
        overrides: Words `key=value`; only keys that keep the promise of equal losses may change.

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
        if name in GROUPS and name in RESUMABLE and shown(value) in GROUPS[name]:
            choices[name], data[name] = GROUPS[name][shown(value)], {"option": value}
    table = keys(RunConfig, choices)
    for name, value, given in changes:
        if name in GROUPS and name in RESUMABLE:
            if shown(value) not in GROUPS[name]:
                faults.add(f"{name}={shown(value)} is no option of {name}: there are {', '.join(GROUPS[name])}")
        elif name not in table and name not in GROUPS:
            guess = right_name(name, table)
            faults.add(f"{name} is not a key" + (f": {question(guess)}" if guess else ""))
        elif not name.startswith(RESUMABLE):
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
