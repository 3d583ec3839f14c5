"""Keys with their types and defaults; values are converted to the type of their key, or refused in one sentence."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, is_dataclass
from decimal import Decimal
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from aitrain.errors import RecipeError

_EXAMPLES: dict[type, Any] = {int: 100, float: 1.0, bool: True, str: "TEXT"}
_KINDS: dict[type, str] = {bool: "truth value", int: "number", float: "number"}
_NAMES: dict[type, str] = {int: "whole number", float: "float", str: "text"}


@dataclass(frozen=True)
class Key:
    """One key of the configuration."""

    name: str
    """Dotted name as users type it."""

    hint: Any
    """Type of its value."""

    default: Any
    """Default value; `???` = the user must give it."""

    owner: type
    """Dataclass that holds it."""

    path: str = ""
    """Dotted name of the attribute; differs from `name` where that is a word of Python, as in `task.class`."""

    several: bool = False
    """Whether a list of files may be given instead of one."""

    auto: Any = None
    """Value that the word `auto` stands for, where it may be given instead of a number."""

    @property
    def is_needed(self) -> bool:
        """Whether the user must give a value."""
        return self.default is NO_DEFAULT or self.default == MISSING


def spelled(attribute: str) -> str:
    """Return the word that users type for an attribute: `class` for `class_`.

    Args:
        attribute: Name of a field.
    """
    return attribute.removesuffix("_")


def keys(cls: type, choices: Mapping[str, type], prefix: str = "") -> dict[str, Key]:
    """Return every leaf key below a dataclass by its dotted name.

    Args:
        cls: Dataclass to walk through.
        choices: Dotted group name -> dataclass of the option chosen for it.
        prefix: Dotted name of `cls` itself, with a dot at its end; empty for the root.
    """
    hints = get_type_hints(cls)
    found: dict[str, Key] = {}
    for each in fields(cls):
        name = prefix + spelled(each.name)
        inner = choices.get(name, hints[each.name])
        if is_dataclass(inner):
            found |= keys(inner, choices, name + ".")  # type: ignore[arg-type]
            continue
        default = each.default_factory() if each.default_factory is not NO_DEFAULT else each.default
        meta = each.metadata
        several, auto = meta.get("several", False), meta.get("auto")
        found[name] = Key(name, hints[each.name], default, cls, prefix + each.name, several, auto)
    return found


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that a misspelt word most likely means, or `None`.

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


def format_value(value: Any) -> str:
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
        if 0 < abs(value) < 1e-3:
            return f"{Decimal(repr(value)).normalize():e}"
        return repr(value).removesuffix(".0")
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(format_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{word}: {format_value(inner)}" for word, inner in value.items()) + "}"
    return str(value)


def type_name(hint: Any) -> str:
    """Return a type as documentation names it.

    Args:
        hint: Type of a key.
    """
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("null" if part is NoneType else type_name(part) for part in get_args(hint))
    if get_origin(hint) is dict:
        return "keys with values"
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
    if key.auto is not None and value == "auto":
        return key.auto
    if key.auto is not None and _number(float, value) == key.auto:
        raise RecipeError(f"{key.name}={value} must be above {key.auto}: write a number, or {key.name}=auto")
    hint = key.hint
    if get_origin(hint) in (Union, UnionType):
        if value is None:
            return None
        hint = next(part for part in get_args(hint) if part is not NoneType)
    elif value is None:
        raise RecipeError(f"{key.name}=null: a value is required; {_advice(key, hint)}")
    if get_origin(hint) is dict:
        if isinstance(value, dict):
            as_text = get_args(hint)[1] is str
            return {str(word): format_value(inner) if as_text else inner for word, inner in value.items()}
        raise RecipeError(f"{key.name}={format_value(value)} holds no keys: write for instance {key.name}.word=value")
    if hint is str and given is not None and isinstance(value, (int, float)):
        return given
    if key.several and isinstance(value, (list, tuple)) and value:
        files = [_scalar(key, hint, str, item, value) for item in value]
        return files[0] if len(files) == 1 else json.dumps(files, ensure_ascii=False)
    if get_origin(hint) is list and isinstance(value, (list, tuple)):
        return [_scalar(key, hint, get_args(hint)[0], item, value) for item in value]
    if get_origin(hint) is list:
        raise RecipeError(f"{key.name}={format_value(value)} is not a {type_name(hint)}: {_advice(key, hint)}")
    return _scalar(key, hint, hint, value, value)


def _scalar(key: Key, hint: Any, kind: Any, value: Any, whole: Any) -> Any:
    """Return one scalar in type `kind`, or raise with the key's whole value in the message."""
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    if issubclass(kind, Enum):
        return _member(key, hint, kind, value)
    if kind in (int, float) and (number := _number(kind, value)) is not None:
        return number
    if kind is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if kind is str and isinstance(value, (bool, int, float)):
        raise RecipeError(
            f"{key.name}={format_value(whole)} must be text, but it reads as a {_KINDS[type(value)]}: put it in quotes"
        )
    wrong = "is neither true nor false" if hint is bool else f"is not a {type_name(hint)}"
    raise RecipeError(f"{key.name}={format_value(whole)} {wrong}: {_advice(key, hint)}")


def _member(key: Key, hint: Any, kind: type[Enum], value: Any) -> Enum:
    """Return the enum member of this name, or raise with the nearest one."""
    if isinstance(value, str) and value in kind.__members__:
        return kind[value]
    guess = nearest(format_value(value), kind.__members__)
    advice = f"did you mean {guess}?" if guess else _advice(key, hint)
    raise RecipeError(f"{key.name}={format_value(value)} is not one of {', '.join(kind.__members__)}: {advice}")


def _number(kind: type, value: Any) -> int | float | None:
    """Return a number in type `kind`; `None` = it is none, or would lose its fraction."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        if kind is float:
            return float(value)
        exact = Decimal(str(value).strip())
        return int(exact) if exact == exact.to_integral_value() else None
    except (ArithmeticError, ValueError):
        return None


def _advice(key: Key, hint: Any) -> str:
    value = key.default
    if value in (None, MISSING, []):
        kind = get_args(hint)[0] if get_origin(hint) is list else hint
        example = next(iter(kind)) if issubclass(kind, Enum) else _EXAMPLES[kind]
        value = [example] if get_origin(hint) is list else example
    return f"write for instance {key.name}={format_value(value)}"


def fallback_value(key: Key) -> Any:
    """Return a value for a key that has none, so that the rules about the other keys can still be checked.

    Args:
        key: The key.
    """
    kinds = get_args(key.hint) or (key.hint,)  # `str | None` has the example of `str`
    return _EXAMPLES[kinds[0]] if key.default == MISSING else key.default


@dataclass
class Faults:
    """Faults found so far and the keys they concern, so that a rule does not report a key twice."""

    lines: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def add(self, line: str, *about: str | None) -> None:
        """Note a fault.

        Args:
            line: One sentence.
            about: Keys that it concerns.
        """
        self.lines.append(line)
        self.keys.update(key for key in about if key)

    def mention(self, rule: str) -> bool:
        """Return whether a sentence concerns a key that already has a fault.

        Args:
            rule: A sentence about keys.
        """
        names = [re.escape(key) for key in self.keys if "." in key or "=" in key]
        return re.search(rf"(?<![\w.])({'|'.join(names)})(?!\w)", rule) is not None if names else False


def quoted(text: str) -> str:
    """Return a text in double quotes, which Hydra's grammar reads back as it is.

    Args:
        text: Any text without line breaks, for instance a path.

    Source: Hydra's grammar of overrides: within quotes, backslashes count only in front of a quote.
    """
    return '"' + re.sub(r'(\\*)("|\Z)', lambda found: 2 * found[1] + ("\\" + found[2] if found[2] else ""), text) + '"'
