"""From a recipe and overrides to a checked `RunConfig`, and back from `run.yaml`: the only place with Hydra."""

from __future__ import annotations

import copy
import itertools
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
from hydra.core.override_parser.types import Glob, Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from aitrain import __version__
from aitrain.config import GROUPS, OPTION_OF, RunConfig
from aitrain.config.describe import describe
from aitrain.config.frozen import RESUMABLE, from_plain, to_plain
from aitrain.config.manual import all_keys, field_docs, manual
from aitrain.config.source import CONFIGS, find, layers
from aitrain.config.values import Faults, Key, convert, keys, nearest, shown, stand_in
from aitrain.errors import RecipeError
from aitrain.io import write_text

__all__ = ["all_keys", "amend", "compose", "describe", "find", "freeze", "load", "manual", "sweep"]


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
    for change in _parse(overrides, faults):
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
    for layer in recipes:
        for name, value in _leaves(layer.values, composition.table):
            composition.set(name, value, None, layer.where(name))
    for change in changes:
        if not _picks_option(change):
            for name, value in _leaves({change.key_or_group: change.value()}, composition.table):
                composition.set(name, value, _given(change), "")
    return composition.finish(path.stem)


class _Composition:
    """A configuration in the making, with the faults found on the way."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.options: dict[str, str] = {}
        self.guessed: set[str] = set()
        self.config = OmegaConf.create()
        self.table: dict[str, Key] = {}

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

    def _refuse(self, name: str, value: Any, where: str) -> None:
        """Note a key that does not exist."""
        group = name.split(".", 1)[0]
        if any(key.startswith(name + ".") for key in self.table):
            if value is None or value == {}:
                return  # a group whose keys are all commented out
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
        guess = nearest(name, self.table) or nearest(name, {key.split(".", 1)[0] for key in self.table})
        groups = ", ".join(field.name for field in fields(RunConfig))
        hint = f"did you mean {guess}?" if guess else f"the groups are {groups}; `aitrain show` lists the keys"
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


def _parse(overrides: Sequence[str], faults: Faults) -> list[Override]:
    """Parse the words of the command line, each by itself."""
    parser, parsed = OverridesParser.create(), []
    for word in overrides:
        plain, _, value = word.lstrip("+~").partition("=")
        try:
            change = parser.parse_override(word)
        except HydraException:
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


def freeze(config: RunConfig, path: Path) -> None:
    """Write a configuration as `run.yaml` in one step.

    Args:
        config: A checked configuration.
        path: File to write; its folder must exist.
    """
    text = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True, width=120)
    write_text(path, f"# Frozen by aitrain {__version__}: every rank and every restart reads this file.\n{text}")


def load(path: Path) -> RunConfig:
    """Read back what `freeze` wrote.

    Args:
        path: A `run.yaml`.

    Raises:
        RecipeError: The file is absent, broken, or holds keys or values that do not exist.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path} is not a frozen configuration: it holds no keys")
    try:
        return from_plain(data)
    except RecipeError as error:
        raise RecipeError([f"{path}: {fault}" for fault in error.faults]) from error


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
    for change in _parse(overrides, faults):
        if change.is_sweep_override():
            faults.add(f"{change.input_line} lists alternatives: give one, or put quotes or [] around it")
        else:
            changes.append((change.key_or_group, change.value(), _given(change)))
    for name, value, _ in changes:
        if name == "logger" and shown(value) in GROUPS[name]:
            choices[name], data[name] = GROUPS[name][shown(value)], {"option": value}
    table = keys(RunConfig, choices)
    for name, value, given in changes:
        if name == "logger":
            if shown(value) not in GROUPS[name]:
                faults.add(f"logger={shown(value)} is no option of logger: there are {', '.join(GROUPS[name])}")
        elif name not in table and name not in GROUPS:
            guess = nearest(name, table)
            faults.add(f"{name} is not a key" + (f": did you mean {guess}?" if guess else ""))
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
    for change in _parse(overrides, faults):
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


def _given(change: Override) -> str:
    """Return the user's own characters of a value."""
    return str(change.input_line).split("=", 1)[1].strip()
