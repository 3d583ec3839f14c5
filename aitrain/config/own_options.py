"""User-defined option files, in addition to the built-in ones: `DIR/optim/gentle.yaml` makes `optim=gentle`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from aitrain.config.root import GROUPS
from aitrain.config.values import Faults
from aitrain.errors import RecipeError

VARIABLE = "AITRAIN_CONFIG_DIR"
"""Environment variable with the folder; `--config-dir` sets it, so that child processes find it too."""


@dataclass(frozen=True)
class Preset:
    """A user-defined option: a built-in one with other defaults."""

    group: str
    base: str
    """The built-in option it starts from."""

    values: dict[str, Any]
    path: Path


def folder() -> Path | None:
    """Return the folder of the user's option files, or None.

    Raises:
        RecipeError: It is named and does not exist, or a folder in it is no group.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    place = Path(named).expanduser()
    if not place.is_dir():
        raise RecipeError(f"--config-dir {named} is not a folder: name one with for instance optim/gentle.yaml")
    strange = sorted(path.name for path in place.iterdir() if path.is_dir() and path.name not in GROUPS)
    if strange:
        raise RecipeError(
            f"--config-dir {named}: {strange[0]}/ is not a configuration group: choose from {', '.join(GROUPS)}"
        )
    return place


def own_options(group: str) -> list[str]:
    """Return the names of the user's options of a group.

    Args:
        group: A group with a choice.
    """
    place = folder()
    return [] if place is None else sorted(path.stem for path in (place / group).glob("*.yaml"))


def own_option(group: str, option: str, faults: Faults) -> Preset | None:
    """Return a user-defined option, or None if there is no such file.

    Args:
        group: A group with a choice.
        option: What the user chose.
        faults: Takes what is wrong with the file.
    """
    place = folder()
    path = None if place is None else place / group / f"{option}.yaml"
    if path is None or not path.is_file():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        faults.add(f"{path} cannot be read as YAML: {error}", f"{group}=")
        return None
    defaults = content.pop("defaults", None) if isinstance(content, dict) else None
    bases = [word for word in defaults or [] if word in GROUPS[group]] if isinstance(defaults, list) else []
    if len(bases) != 1:
        known = ", ".join(GROUPS[group])
        faults.add(
            f"{path}: it must begin with the built-in option that it changes, `defaults: [OPTION, _self_]`; there are "
            f"{known}",
            f"{group}=",
        )
        return None
    return Preset(group, bases[0], content, path)
