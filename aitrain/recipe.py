"""From a recipe and overrides to a checked `RunConfig`, and back from a frozen `run.yaml`: the only place with Hydra."""

from __future__ import annotations

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
from aitrain.config.frozen import from_plain, to_plain
from aitrain.config.manual import field_docs
from aitrain.config.source import CONFIGS, Layer, find, layers
from aitrain.config.values import Faults, Key, convert, keys, nearest, shown
from aitrain.errors import RecipeError
from aitrain.io import write_text

RESUMABLE = (
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.devices",
    "trainer.nodes",
    "trainer.micro_batch_sequences",
    "trainer.activation_checkpointing",
    "data.workers",
    "checkpoint.",
    "evaluate.",
    "export.",
    "logger",
)
"""Keys (and beginnings of keys) that a resumed run may change, because losses do not depend on them."""


def compose(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the checked configuration of a recipe with overrides.

    Args:
        recipe: Name of a shipped recipe, or path of a YAML file.
        overrides: Words `key=value` or `group=option` in Hydra's grammar; the last one wins.

    Raises:
        RecipeError: Every fault of the recipe and of the overrides, one sentence each.
    """
    faults = Faults()
    path = find(recipe)
    recipes = layers(path, faults)
    changes = _parse(overrides, faults)
    single = []
    for change in changes:
        if change.is_sweep_override():
            faults.add(f"{change.input_line} lists alternatives: add -m to run each in turn, or put quotes or [] around it")
        else:
            single.append(change)
    config, unsure = _choose(recipes, single, faults)
    table = keys(RunConfig, {group: type_of(config, group) for group in GROUPS})
    for layer in recipes:
        for name, value in _leaves(layer.values, table):
            _set(config, table, name, value, None, layer.where(name), unsure, faults)
    for change in single:
        if change.key_or_group in GROUPS and not isinstance(change.value(), dict):
            continue
        for name, value in _leaves({change.key_or_group: change.value()}, table):
            _set(config, table, name, value, _given(change), "", unsure, faults)
    return _finish(config, table, faults, path.stem)


def type_of(config: DictConfig, group: str) -> type:
    """Return the dataclass of the option chosen for a group.

    Args:
        config: A composed configuration.
        group: A name out of `GROUPS`.
    """
    found = OmegaConf.get_type(config, group)
    assert found is not None, f"{group} has no schema"
    return found


def _parse(overrides: Sequence[str], faults: Faults) -> list[Override]:
    """Parse the words of the command line, each by itself."""
    parser, parsed = OverridesParser.create(), []
    for word in overrides:
        try:
            change = parser.parse_override(word)
        except HydraException:
            if "=" not in word:
                faults.add(f"{word} is not key=value: write for instance optim.lr=2e-5", word)
            else:
                key, value = word.split("=", 1)
                quoted = value.replace("\\", "\\\\").replace('"', '\\"')
                faults.add(f"{word} cannot be read: put the value in quotes, '{key}=\"{quoted}\"'", key)
            continue
        if change.type is not OverrideType.CHANGE:
            plain = word.lstrip("+~").split("=", 1)[0]
            known = f"write {plain}=VALUE to change a key" if word[0] == "+" else "keys cannot be removed; write key=null to unset one"
            faults.add(f"{word}: overrides with +, ++ or ~ are refused, because they would let a misspelt key pass; {known}", plain)
        elif change.package is not None:
            faults.add(f"{word}: packages (@) are not used here; write group=option or key=value", change.key_or_group)
        else:
            parsed.append(change)
    return parsed


def _choose(recipes: list[Layer], changes: list[Override], faults: Faults) -> tuple[DictConfig, set[str]]:
    """Let Hydra compose the chosen option of every group; also return the groups whose option had to be guessed."""
    unsure: set[str] = set()
    wanted: dict[str, str] = {}
    picks = [(group, option, layer.where("defaults")) for layer in recipes for group, option in layer.choices.items()]
    for change in changes:
        if change.key_or_group in GROUPS and not isinstance(change.value(), dict):
            picks.append((change.key_or_group, shown(change.value()), ""))
    for group, option, where in picks:
        if option not in GROUPS[group]:
            guess = nearest(option, GROUPS[group])
            hint = f"did you mean {guess}? " if guess else ""
            faults.add(f"{where}{group}={option} is no option of {group}: {hint}There are {', '.join(GROUPS[group])}", f"{group}=")
            unsure.add(group)
            if guess is None:
                continue
            option = guess
        wanted[group] = option
    _register()
    with initialize_config_dir(str(CONFIGS.resolve()), version_base="1.3"):
        return hydra_compose("base", [f"{group}={option}" for group, option in wanted.items()]), unsure


@cache
def _register() -> None:
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


def _set(
    config: DictConfig, table: dict[str, Key], name: str, value: Any, given: str | None, where: str, unsure: set[str], faults: Faults
) -> None:
    """Set one key, or gather why not."""
    group = name.split(".", 1)[0]
    if name not in table:
        if any(key.startswith(name + ".") for key in table):
            if value is not None:
                faults.add(where + _group_as_key(name, value), f"{name}.")
        elif group not in unsure or not _holders(name):
            line, guess = _unknown(name, table, config)
            faults.add(where + line, name, guess)
        return
    try:
        referring = "${" in str(value)
        OmegaConf.update(config, name, value if referring else convert(table[name], value, given))
    except RecipeError as error:
        faults.add(f"{where}{error}", name)
    except OmegaConfBaseException:
        faults.add(f"{where}{name}={shown(value)}: ${{...}} refers to another key; write \\${{ for the characters themselves", name)


def _group_as_key(name: str, value: Any) -> str:
    if name in GROUPS:
        return f"{name}: {shown(value)} chooses an option: write it in the defaults list as `- override {name}: {shown(value)}`"
    return f"{name}={shown(value)}: {name} is a group of keys; `aitrain show {name}` lists them"


def _holders(name: str) -> list[str]:
    """Return the options of a key's group that have this key."""
    group, _, word = name.partition(".")
    return [option for option, cls in GROUPS.get(group, {}).items() if word in {field.name for field in fields(cls)}]


def _unknown(name: str, table: dict[str, Key], config: DictConfig) -> tuple[str, str | None]:
    """Return the sentence about a key that does not exist, and the key it may mean."""
    group, holders = name.split(".", 1)[0], _holders(name)
    if holders:
        now = OPTION_OF[type_of(config, group)]
        return (
            f"{name} belongs to {group}={' or '.join(holders)}, but this run has {group}={now}: "
            f"choose {group}={holders[0]} or remove {name}",
            name,
        )
    guess = nearest(name, table) or nearest(name, {key.split(".", 1)[0] for key in table})
    hint = f"did you mean {guess}?" if guess else f"the groups are {', '.join(RunConfig.__dataclass_fields__)}; see `aitrain show`"
    return f"{name} is not a key: {hint}", guess


def _finish(config: DictConfig, table: dict[str, Key], faults: Faults, stem: str) -> RunConfig:
    """Resolve, find what is missing, check the rules; return the configuration or raise with every fault."""
    missing = []
    for name, key in table.items():
        try:
            value = OmegaConf.select(config, name, throw_on_missing=True)
            OmegaConf.to_container(value, resolve=True) if OmegaConf.is_list(value) else None
        except MissingMandatoryValue:
            missing.append(name)
            OmegaConf.update(config, name, "missing")
        except OmegaConfBaseException as error:
            faults.add(f"{name}: its ${{...}} cannot be resolved: {str(error).splitlines()[0]}", name)
            OmegaConf.update(config, name, "missing" if key.hint is str else key.default)
    for name in missing:
        if name not in faults.keys:
            doc = field_docs(table[name].owner)[name.rsplit(".", 1)[-1]]
            faults.add(f"{name} is missing: write {name}=..., {doc[0].lower()}{doc[1:]}", name)
    result = OmegaConf.to_object(config)
    assert isinstance(result, RunConfig), f"Hydra made a {type(result)}"
    rules = [rule for rule in result.check() if not any(key in rule for key in faults.keys)]
    if faults.lines or rules:
        raise RecipeError(list(dict.fromkeys([*faults.lines, *rules])))
    result.run.name = result.run.name or stem
    return result


def freeze(config: RunConfig, path: Path) -> None:
    """Write a configuration as `run.yaml` in one step.

    Args:
        config: A checked configuration.
        path: File to write; its folder must exist.
    """
    text = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True, width=120)
    write_text(path, f"# The configuration of this run, frozen by aitrain {__version__}; every rank and every restart reads it.\n{text}")


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
    changes = [(change.key_or_group, change.value(), _given(change)) for change in _parse(overrides, faults)]
    choices = {group: type(getattr(config, group)) for group in GROUPS}
    for name, value, _ in changes:
        if name == "logger" and value in GROUPS[name]:
            choices[name], data[name] = GROUPS[name][value], {"option": value}
    table = keys(RunConfig, choices)
    for name, value, given in changes:
        if name == "logger":
            if value not in GROUPS[name]:
                faults.add(f"logger={shown(value)} is no option of logger: there are {', '.join(GROUPS[name])}")
        elif name not in table and name not in GROUPS:
            guess = nearest(name, table)
            faults.add(f"{name} is not a key" + (f": did you mean {guess}?" if guess else ""))
        elif not name.startswith(RESUMABLE):
            faults.add(f"{name} cannot change when a run is resumed, because losses depend on it: start a new run with it")
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
