"""Composes a configuration: Hydra composes the options, then keys are set one by one, so that every fault is found."""

from __future__ import annotations

import copy
from dataclasses import fields
from functools import cache
from typing import Any, get_args, get_origin

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from aitrain.config import GROUPS, OPTION_OF, RunConfig
from aitrain.config.manual import field_docs
from aitrain.config.own_options import Preset, own_option, own_options
from aitrain.config.source import CONFIGS
from aitrain.config.synonyms import question, right_name
from aitrain.config.values import Faults, Key, convert, fallback_value, format_value, keys, nearest, spelled
from aitrain.errors import RecipeError


class Composition:
    """A configuration that is being composed, with the faults found so far."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.options: dict[str, str] = {}
        self.guessed: set[str] = set()
        self.config = OmegaConf.create()
        self.table: dict[str, Key] = {}
        self.notes: list[str] = []
        self.presets: list[Preset] = []

    def choose(self, group: str, option: str, where: str) -> None:
        """Choose an option; for an unknown one the nearest is used, so that keys can still be checked."""
        self.guessed.discard(group)
        self.presets = [preset for preset in self.presets if preset.group != group]
        if option in GROUPS[group]:
            self.options[group] = option
            return
        preset = own_option(group, option, self.faults)
        if preset is not None:
            self.options[group] = preset.base
            self.presets.append(preset)
            return
        self.guessed.add(group)
        guess = nearest(option, GROUPS[group])
        hint = f"did you mean {guess}? " if guess else ""
        there = f"Choose from {', '.join([*GROUPS[group], *own_options(group)])}"
        self.faults.add(f"{where}{group}={option} is not an option of {group}: {hint}{there}", f"{group}=")
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
        holder, _, word = name.rpartition(".")
        if name not in self.table and holder in self.table and get_origin(self.table[holder].hint) is dict:
            path = self.table[holder].path
            if get_args(self.table[holder].hint)[1] is str and not isinstance(value, str):
                value = format_value(value) if given is None else given
            value = {**OmegaConf.to_container(OmegaConf.select(self.config, path)), word: value}  # type: ignore[dict-item]
            OmegaConf.update(self.config, path, value, merge=False)
            return
        if name not in self.table:
            self._refuse(name, value, where)
            return
        try:
            # `${...}` gets its type when it is resolved
            key = self.table[name]
            value = value if "${" in str(value) else convert(key, value, given)
            OmegaConf.update(self.config, key.path, value, merge=False)
        except RecipeError as error:
            self.faults.add(f"{where}{error}", name)
        except OmegaConfBaseException:
            rule = "${...} refers to another key; for the characters themselves, write \\${"
            self.faults.add(f"{where}{name}={format_value(value)}: {rule}", name)

    def suits(self, optimizer: str) -> bool:
        """Return whether a learning rate chosen for one optimizer also suits the optimizer of this run."""
        return OPTION_OF[self.chosen("optim")].split("_")[0] == optimizer.split("_")[0]

    def leave_rate(self, value: Any, optimizer: str) -> None:
        """Say that a recipe's learning rate is not carried over to another optimizer."""
        now = OPTION_OF[self.chosen("optim")]
        own = format_value(OmegaConf.select(self.config, "optim.lr"))
        self.notes.append(
            f"optim.lr={format_value(value)} in the recipe is meant for optim={optimizer}: optim={now} starts from its "
            f"own default, optim.lr={own}; write optim.lr=... to choose another"
        )

    def _refuse(self, name: str, value: Any, where: str) -> None:
        """Note a key that does not exist."""
        group = name.split(".", 1)[0]
        if any(key.startswith(name + ".") for key in self.table):
            if where and (value is None or value == {}):
                return  # a group in a file whose keys are all commented out
            text = format_value(value)
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
        """Resolve references, find missing keys and check the rules; return the configuration or raise every fault."""
        for name, key in self.table.items():
            try:
                value = OmegaConf.select(self.config, key.path, throw_on_missing=True)
                if OmegaConf.is_list(value):
                    OmegaConf.to_container(value, resolve=True)
            except MissingMandatoryValue:
                if name not in self.faults.keys:
                    doc = field_docs(key.owner)[name.rsplit(".", 1)[-1]]
                    self.faults.add(f"{name} is missing: write {name}=..., {doc[0].lower()}{doc[1:]}", name)
                OmegaConf.update(self.config, key.path, fallback_value(key))
            except OmegaConfBaseException as error:
                reason = str(error).splitlines()[0].removeprefix("KeyError raised while resolving interpolation: ")
                self.faults.add(f"{name}: its ${{...}} cannot be resolved: {reason}", name)
                OmegaConf.update(self.config, key.path, fallback_value(key))
        result = OmegaConf.to_object(self.config)
        assert isinstance(result, RunConfig), f"Hydra made a {type(result)}"
        rules = [rule for rule in result.check() if not self.faults.mention(rule)]
        if self.faults.lines or rules:
            raise RecipeError(list(dict.fromkeys([*self.faults.lines, *rules])))
        result.run.name = result.run.name or stem
        return result


@cache
def _options(chosen: tuple[tuple[str, str], ...]) -> DictConfig:
    """Return `base` with these options, every YAML option on its schema."""
    _register()
    with initialize_config_dir(str(CONFIGS.resolve()), version_base="1.3"):
        return hydra_compose("base", [f"{group}={option}" for group, option in chosen])


@cache
def _register() -> None:
    """Register the schemas with Hydra."""
    store = ConfigStore.instance()
    store.store(name="_run", node=RunConfig)
    for group, options in GROUPS.items():
        for option, schema in options.items():
            store.store(group=group, name=f"_{option}", node=schema)


def _holders(name: str) -> list[str]:
    """Return the options of a key's group that have this key."""
    group, _, word = name.partition(".")
    return [
        option
        for option, cls in GROUPS.get(group, {}).items()
        if word in {spelled(field.name) for field in fields(cls)}
    ]
