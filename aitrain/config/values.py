"""Values of keys: every key with its type and default, and conversion that refuses with one sentence saying what to write."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from aitrain.errors import RecipeError

_EXAMPLES: dict[type, Any] = {int: 100, float: 1.0, bool: True, str: "TEXT"}
_NAMES: dict[type, str] = {int: "whole number", float: "float", str: "text"}


@dataclass(frozen=True)
class Key:
    """One key of the configuration."""

    name: str
    """Dotted name as users type it."""

    hint: Any
    """Type of its value."""

    default: Any
    """Value when nobody gives one; `???` = the user must give it."""

    owner: type
    """Dataclass that holds it."""


def keys(cls: type, choices: Mapping[str, type], prefix: str = "") -> dict[str, Key]:
    """Return every leaf key below a dataclass by its dotted name.

    Args:
        cls: Dataclass to walk through.
        choices: Dotted group name -> dataclass of the option chosen for it.
        prefix: Dotted name of `cls` itself, with a dot at its end; empty for the root.
    """
    hints = get_type_hints(cls)
    found: dict[str, Key] = {}
    for field in fields(cls):
        name = prefix + field.name
        inner = choices.get(name, hints[field.name])
        if is_dataclass(inner):
            found |= keys(inner, choices, name + ".")  # type: ignore[arg-type]
            continue
        default = field.default_factory() if field.default_factory is not NO_DEFAULT else field.default
        found[name] = Key(name, hints[field.name], default, cls)
    return found


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate a misspelt word most likely means, or `None`.

    Args:
        word: What the user typed.
        candidates: The right words.
    """
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    lower = word.lower().replace("-", "_")
    tail = [c for c in by_lower if c.rsplit(".", 1)[-1] == lower.rsplit(".", 1)[-1]]
    close = difflib.get_close_matches(lower, by_lower, n=1, cutoff=0.6)
    if not close and "." not in lower:  # `lr` or `max_step` without its group
        ends = {c.rsplit(".", 1)[-1]: c for c in by_lower}
        close = [ends[end] for end in difflib.get_close_matches(lower, ends, n=1, cutoff=0.75)]
    if not close and len(lower) > 2:  # `zero1` for `deepspeed_zero1`
        close = [c for c in by_lower if lower in c][:1]
    best = tail[0] if len(tail) == 1 else close[0] if close else tail[0] if tail else None
    return None if best is None else by_lower[best]


def shown(value: Any) -> str:
    """Return a value as users type it.

    Args:
        value: A value of a key: scalar, enum member, list or `None`.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(shown, value)) + "]"
    return str(value)


def type_name(hint: Any) -> str:
    """Return a type as documentation names it.

    Args:
        hint: Type of a key.
    """
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("null" if part is NoneType else type_name(part) for part in get_args(hint))
    if get_origin(hint) is list:
        return f"list of {type_name(get_args(hint)[0])}s"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(hint.__members__)
    return "true or false" if hint is bool else _NAMES.get(hint, str(hint))


def convert(key: Key, value: Any, given: str | None = None) -> Any:
    """Return a value in the type of its key.

    Args:
        key: The key.
        value: What YAML or the command line made of the user's text.
        given: The user's own characters where they are known; they are what a key of type text gets.

    Raises:
        RecipeError: The value is of the wrong type; the message says what to write.
    """
    if isinstance(value, str) and value == MISSING:
        return MISSING
    hint = key.hint
    if get_origin(hint) in (Union, UnionType):
        if value is None:
            return None
        hint = next(part for part in get_args(hint) if part is not NoneType)
    elif value is None:
        raise RecipeError(f"{key.name}=null: a value is needed here; {_advice(key, hint)}")
    if hint is str and given is not None and isinstance(value, (int, float)):
        return given
    if get_origin(hint) is list and isinstance(value, (list, tuple)):
        return [_scalar(key, hint, get_args(hint)[0], item, value) for item in value]
    return _scalar(key, hint, hint, value, value)


def _scalar(key: Key, hint: Any, kind: Any, value: Any, whole: Any) -> Any:
    """Return one scalar in type `kind`, or raise with the key's whole value in the message."""
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)) if isinstance(kind, type) else False:
        return value
    if isinstance(kind, type) and issubclass(kind, Enum):
        if isinstance(value, str) and value in kind.__members__:
            return kind[value]
        guess = nearest(shown(value), kind.__members__)
        hintful = f"did you mean {guess}?" if guess else _advice(key, hint)
        raise RecipeError(f"{key.name}={shown(whole)} is not one of {', '.join(kind.__members__)}: {hintful}")
    if kind in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
            if kind is float or number == int(number):
                return float(value) if kind is float else int(value) if isinstance(value, (int, str)) else int(number)
        except (ValueError, OverflowError):
            pass  # falls to the sentence below
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind is str and isinstance(value, (bool, int, float)):
        raise RecipeError(f"{key.name}={shown(whole)} must be text, but it reads as a number or a truth value: put it in quotes")
    wrong = "is neither true nor false" if hint is bool else f"is not a {type_name(hint)}"
    raise RecipeError(f"{key.name}={shown(whole)} {wrong}: {_advice(key, hint)}")


def _advice(key: Key, hint: Any) -> str:
    value = key.default
    if value in (None, MISSING, [], NO_DEFAULT) or value == "":
        kind = hint
        if get_origin(hint) is list:
            kind = get_args(hint)[0]
        example = next(iter(kind)) if isinstance(kind, type) and issubclass(kind, Enum) else _EXAMPLES.get(kind, "VALUE")
        value = [example] if get_origin(hint) is list else example
    return f"write for instance {key.name}={shown(value)}"


@dataclass
class Faults:
    """Faults found so far, and the keys they speak of, so that a rule does not complain a second time."""

    lines: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def add(self, line: str, *about: str | None) -> None:
        """Note a fault.

        Args:
            line: One sentence.
            about: Keys it speaks of.
        """
        self.lines.append(line)
        self.keys.update(key for key in about if key)
