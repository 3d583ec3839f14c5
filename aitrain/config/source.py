"""Recipe files: where they are, which options they choose and which values they set, with line numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aitrain.config.root import GROUPS
from aitrain.config.values import Faults, format_value, nearest
from aitrain.errors import RecipeError

CONFIGS = Path(__file__).parents[1] / "_configs"
RECIPES = Path(__file__).parents[1] / "_recipes"
BEGINNING = "begin the recipe with `defaults: [base, _self_]`"


@dataclass
class Layer:
    """One recipe file: the options it chooses and the values it sets."""

    path: Path
    choices: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """Return `file:line: ` of a dotted key."""
        here = Path.cwd()
        name = self.path.relative_to(here) if self.path.is_relative_to(here) else self.path
        return f"{name}:{self.lines[key]}: " if key in self.lines else f"{name}: "


def names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find(recipe: str) -> Path:
    """Return the file of a recipe.

    Args:
        recipe: Name of a shipped recipe, or path of a YAML file.

    Raises:
        RecipeError: There is no such recipe; the message names the nearest ones.
    """
    shipped = RECIPES / f"{recipe}.yaml"
    if "/" not in recipe and shipped.is_file():
        return shipped
    if "/" in recipe or recipe.endswith((".yaml", ".yml")):
        path = Path(os.path.abspath(os.path.expanduser(recipe)))
        if path.is_file():
            return path
        kind = "is a folder, not a recipe" if path.is_dir() else "does not exist"
        guess = nearest(path.stem, names())
        hint = f"did you mean the recipe {guess}?" if guess else "check the path"
        raise RecipeError(f"recipe {recipe} {kind}: {hint}")
    guess = nearest(recipe, names())
    hint = f"did you mean {guess}? " if guess else ""
    known = f"Choose from {', '.join(names())}; a file is given by its path"
    raise RecipeError(f"recipe {recipe} is not known: {hint}{known}")


def layers(path: Path, faults: Faults, above: tuple[Path, ...] = ()) -> list[Layer]:
    """Read a recipe and those it builds on, the deepest first.

    Args:
        path: The recipe's file.
        faults: Where faults of defaults lists are gathered.
        above: Recipes that build on this one.

    Raises:
        RecipeError: A file is empty, or no YAML.
    """
    layer = Layer(path)
    content, layer.lines = _read(path)
    before: list[Layer] = []
    defaults = content.pop("defaults", None)
    layer.values = content
    if not isinstance(defaults, list) or not defaults:
        faults.add(f"{layer.where('defaults')}the defaults list is missing: {BEGINNING}")
        return [layer]
    if "_self_" in defaults[:-1]:
        faults.add(f"{layer.where('defaults')}_self_ must come last in the defaults list: the recipe's own values win")
    named = [entry for entry in defaults if isinstance(entry, str) and entry not in ("base", "_self_")]
    if "base" not in defaults and not named:
        faults.add(f"{layer.where('defaults')}the defaults list has no base: write `- base` as its first entry")
    for entry in defaults:
        if isinstance(entry, dict):
            for word, option in entry.items():
                _choice(layer, str(word), option, faults)
        elif entry in named:
            beside = path.with_name(f"{entry}.yaml")
            try:
                parent = beside if beside.is_file() else find(entry)
            except RecipeError as error:
                faults.add(f"{layer.where('defaults')}{error}")
                continue
            if parent in (*above, path):
                faults.add(f"{layer.where('defaults')}{entry} builds on itself: remove it from the defaults list")
                continue
            before += layers(parent, faults, (*above, path))
    return [*before, layer]


def _choice(layer: Layer, word: str, option: Any, faults: Faults) -> None:
    """Take one entry `override GROUP: OPTION` of a defaults list."""
    where = layer.where("defaults")
    group = word.removeprefix("override ").strip().removeprefix("/")
    if group not in GROUPS:
        guess = nearest(group, GROUPS)
        hint = f"did you mean {guess}?" if guess else f"choose from {', '.join(GROUPS)}"
        faults.add(f"{where}{group} in the defaults list is not a group with options: {hint}", group, guess)
        if not guess:
            return
        group = guess
    elif not word.startswith("override "):
        rule = f"base already chooses one: write `- override {word}: {option}`"
        faults.add(f"{where}`- {word}: {option}` in the defaults list: {rule}")
    layer.choices[group] = format_value(option)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return a recipe's content and the line of every dotted key."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        holds_keys = isinstance(node, yaml.MappingNode)
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if holds_keys else node and [node]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: broken YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError, OSError) as error:
        # not UTF-8, a number of 5,000 digits, a date or a list as a key, a thousand brackets
        raise RecipeError(
            f"{path} cannot be read as YAML: {next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from error
    if not content:
        raise RecipeError(f"{path} is empty: {BEGINNING}")
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{path} is not a recipe, because it holds no keys with values: {BEGINNING}")
    return {str(key): value for key, value in content.items()}, dict(key_lines(node, ""))


def key_lines(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, int]]:
    """Yield every dotted key of a YAML mapping with its line, counted from 1.

    Args:
        node: The mapping.
        prefix: Prefix of its keys, ending with a dot; empty for the root.
    """
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        yield name, key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            yield from key_lines(value, name + ".")


def header(path: Path) -> list[str]:
    """Return the comment lines at the top of a recipe, without their signs.

    Args:
        path: The recipe's file.
    """
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" "))
    return lines


def short(path: Path) -> list[str]:
    """Return what a recipe is for in three short texts: what you have, what you get, the smallest machine.

    Args:
        path: The recipe's file.
    """
    found = next((line for line in header(path) if line.startswith("Short: ")), "Short:  |  | ")
    return [part.strip() for part in found.removeprefix("Short:").split("|")]


def model_of(path: Path) -> str | None:
    """Return the model that a recipe starts from, `???` where the user chooses it; None if it needs none.

    Args:
        path: The recipe's file.

    Raises:
        RecipeError: A file is empty, or no YAML.
    """
    named = [(layer.values.get("model") or {}).get("path", "???") for layer in layers(path, Faults())]
    found = named[-1] if named[-1] != "???" else named[0]
    return None if found is None else str(found)
