"""User-defined classes: how a recipe names one, and its options converted to the types that it declares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from omegaconf import MISSING

from aitrain.config.values import convert, format_value, keys, nearest
from aitrain.errors import RecipeError


@dataclass
class UserClass:
    """A class in your own Python file."""

    file: str = MISSING
    """Your Python file. It is read from disk, never from the network; the run records its checksum."""

    class_: str = MISSING
    """Name of the class in that file."""

    options: dict[str, Any] = field(default_factory=dict)
    """Values for the fields of the dataclass `Options` inside that class."""

    def code_faults(self) -> Iterator[str]:
        """Yield what is wrong with the words themselves, one sentence each; the file is read later."""
        if self.file != MISSING and not self.file.endswith(".py"):
            yield f"file={self.file} is not a Python file: its name must end with .py"


def typed_options(owner: type, given: dict[str, Any], prefix: str) -> Any:
    """Return an instance of a class's dataclass `Options` with the recipe's values.

    Args:
        owner: The user's class.
        given: Values from the recipe.
        prefix: Prefix of the keys, for messages: `task.options.`.

    Returns:
        The options; None if the class has no `Options`.

    Raises:
        RecipeError: A key does not exist, is missing or has a value of the wrong type; every fault is told.
    """
    declared = getattr(owner, "Options", None)
    if declared is None:
        if given:
            raise RecipeError(
                f"{prefix}{next(iter(given))} is not a key: {owner.__name__} has no options; write a dataclass "
                "`Options` inside it, or remove the key"
            )
        return None
    if not (isinstance(declared, type) and is_dataclass(declared)):
        raise RecipeError(f"{owner.__name__}.Options is not a dataclass: put @dataclass above it")
    table, faults, values = keys(declared, {}), [], {}
    for name, value in given.items():
        if name not in table:
            guess = nearest(name, table)
            known = f"did you mean {prefix}{guess}?" if guess else f"it has {', '.join(table) or 'none'}"
            faults.append(f"{prefix}{name} is not a key of {owner.__name__}: {known}")
            continue
        try:
            values[table[name].path] = convert(table[name], value)
        except RecipeError as error:
            faults.append(f"{prefix}{error}")
    missing = [name for name, key in table.items() if key.is_needed and name not in given]
    faults += [f"{prefix}{name} is missing: write {prefix}{name}=..." for name in missing]
    if faults:
        raise RecipeError(faults)
    return declared(**values)


def options_text(given: dict[str, Any]) -> str:
    """Return options in readable form.

    Args:
        given: Values from the recipe.
    """
    return " ".join(f"{name}={format_value(value)}" for name, value in given.items())
