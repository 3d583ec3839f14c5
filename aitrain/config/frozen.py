"""A `RunConfig` as plain data for `run.yaml`, and back without loss; and which keys may change when a run is
resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

from aitrain.config.root import GROUPS, OPTION_OF, RunConfig
from aitrain.config.synonyms import right_name
from aitrain.config.trainer import AUTO, Precision
from aitrain.config.values import Faults, convert, format_value, keys, spelled
from aitrain.errors import RecipeError

RESUMABLE = (
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.devices",
    "trainer.nodes",
    "trainer.micro_batch_samples",
    "trainer.accelerator",
    "trainer.hang_min",
    "trainer.profile_steps",
    "trainer.activation_checkpointing",
    "strategy",
    "model.attention",
    "model.fused_ops",
    "data.workers",
    "checkpoint.every_min",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "evaluate.",
    "export.",
    "logger",
    "cluster.",
)
"""Keys (and beginnings of keys) that a resumed run may change, because losses do not depend on them."""

READING = ("data.encoding", "data.delimiter", "data.sheet", "data.header_row")
"""Keys that say how files are read, in which another file may differ from that of the training data."""

SETTLED = ("trainer.global_batch_samples", "trainer.max_epochs", "trainer.precision")
"""Keys that a recipe may leave open; a run freezes them once they are chosen."""


def to_plain(config: RunConfig) -> dict[str, Any]:
    """Return a configuration as dictionaries, lists and scalars; a group with options names the chosen one under
    `option`.

    Args:
        config: The configuration.
    """
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


def _plain_field(holder: Any, field: Field[Any]) -> Any:
    value = getattr(holder, field.name)
    is_auto = value is not None and value == field.metadata.get("auto")
    return "auto" if is_auto and not isinstance(value, bool) else _plain(value)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        option = {"option": OPTION_OF[type(value)]} if type(value) in OPTION_OF else {}
        return option | {spelled(field.name): _plain_field(value, field) for field in fields(value)}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {word: _plain(inner) for word, inner in value.items()}
    return list(value) if isinstance(value, (list, tuple)) else value


def from_plain(data: dict[str, Any]) -> RunConfig:
    """Return the configuration that `to_plain` made this data of; keys that are absent take their defaults.

    Args:
        data: What `to_plain` returned, perhaps after YAML.

    Raises:
        RecipeError: An option or a key does not exist, or a value has the wrong type.
    """
    faults, choices = Faults(), {}
    for group, options in GROUPS.items():
        option = (data.get(group) or {}).get("option")
        if option in options:
            choices[group] = options[option]
        else:
            faults.add(f"{group}.option={option} is not an option of {group}: choose from {', '.join(options)}", group)
            choices[group] = next(iter(options.values()))
    table, hints, given = keys(RunConfig, choices), get_type_hints(RunConfig), {}
    for word, value in data.items():
        inside = value if isinstance(value, dict) else {"": value}
        for name, item in [(f"{word}.{w}".rstrip("."), v) for w, v in inside.items() if w != "option"]:
            if name not in table:
                guess = right_name(name, table)
                faults.add(f"{name} is not a key" + (f": did you mean {guess}?" if guess else ""), name)
                continue
            try:
                given[name] = convert(table[name], item)
            except RecipeError as error:
                faults.add(str(error), name)
    if faults.lines:
        raise RecipeError(faults.lines)
    parts: dict[str, Any] = {}
    for field in fields(RunConfig):
        if field.name in given:
            parts[field.name] = given[field.name]
        elif is_dataclass(hints[field.name]):
            cls, start = choices.get(field.name, hints[field.name]), field.name + "."
            inner = {
                table[name].path.removeprefix(start): value for name, value in given.items() if name.startswith(start)
            }
            parts[field.name] = cls(**inner)
    return RunConfig(**parts)


def continuation(before: RunConfig, wanted: RunConfig, run: Path) -> RunConfig:
    """Return the configuration with which a run continues when the full recipe is given again.

    Args:
        before: What the run was started with.
        wanted: What the recipe says now; where the run lives does not count as a difference.
        run: The run directory, for the message.

    Raises:
        RecipeError: Keys that losses depend on differ, one sentence each.
    """
    faults = []
    old, new = (dict(_plain_leaves(to_plain(config))) for config in (before, wanted))
    for name in dict.fromkeys([*old, *new]):
        if name in ("run.dir", "run.name") or name.startswith(RESUMABLE) or old.get(name) == new.get(name):
            continue
        if name in SETTLED and new.get(name) == "auto":
            continue
        group = name.split(".", 1)[0]
        if group != name and old.get(group) != new.get(group):
            continue  # another option has other keys, which is already reported
        there, here = (format_value(values[name]) if name in values else "nothing" for values in (old, new))
        faults.append(
            f"{name}={here}, but the run in {run} has {there}: give the same, or choose a new run.dir for a new run"
        )
    if faults:
        raise RecipeError(faults)
    return replace(_as_settled(before, wanted), run=before.run)


def _as_settled(before: RunConfig, wanted: RunConfig) -> RunConfig:
    """Keep the values that a run has chosen for `auto`."""
    old, new = before.trainer, wanted.trainer
    chosen: dict[str, Any] = {}
    if new.global_batch_samples == AUTO:
        chosen["global_batch_samples"] = old.global_batch_samples
    if new.max_epochs == AUTO:
        chosen["max_epochs"] = old.max_epochs
    if new.precision is Precision.auto:
        chosen["precision"] = old.precision
    return replace(wanted, trainer=replace(new, **chosen))


def _plain_leaves(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for word, value in data.items():
        if isinstance(value, dict):
            yield from _plain_leaves(value, f"{prefix}{word}.")
        else:
            yield f"{prefix}{word}".removesuffix(".option"), value
