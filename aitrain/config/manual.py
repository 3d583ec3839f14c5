"""The manual of every key: docstrings of the dataclasses and of their fields, read from the source."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, fields
from functools import cache
from textwrap import dedent, indent
from typing import get_type_hints

import yaml
from omegaconf import MISSING

from aitrain.config.root import GROUPS, RunConfig
from aitrain.config.source import CONFIGS
from aitrain.config.synonyms import question, right_name
from aitrain.config.values import Key, convert, format_value, keys, spelled, type_name
from aitrain.errors import RecipeError


@dataclass(frozen=True)
class KeyRow:
    """One line of the table of all keys."""

    key: str
    """Dotted name."""

    option: str | None
    """Option of the group that has the key; `None` = the group has no choice."""

    type: str
    """Type in words."""

    default: str
    """Default as users type it; `???` = the user must give it."""

    doc: str
    """What the key means."""


@cache
def field_docs(cls: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass, those of its parents included.

    Args:
        cls: The dataclass.
    """
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        body = ast.parse(dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef), f"{owner} is not a class"
        for statement, below in zip(body.body, body.body[1:], strict=False):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                docs[spelled(statement.target.id)] = " ".join(str(below.value.value).split())
    return docs


def class_doc(cls: type) -> str:
    """Return the docstring of a dataclass on one line.

    Args:
        cls: The dataclass.
    """
    return " ".join((inspect.getdoc(cls) or "").split())


@cache
def all_keys() -> tuple[KeyRow, ...]:
    """Return a row for every key of every option, in the order of `RunConfig`."""
    rows: list[KeyRow] = []
    hints = get_type_hints(RunConfig)
    for field in fields(RunConfig):
        if field.name in GROUPS:
            for option, cls in GROUPS[field.name].items():
                rows += _rows(field.name, option, cls)
        elif isinstance(hints[field.name], type) and hints[field.name] is not int:
            rows += _rows(field.name, None, hints[field.name])
        else:
            key = keys(RunConfig, {})[field.name]
            doc = field_docs(RunConfig)[field.name]
            rows.append(KeyRow(field.name, None, _type(key), format_value(key.default), doc))
    return tuple(rows)


def _type(key: Key) -> str:
    return type_name(key.hint) + ("" if key.auto is None else " or auto")


def _rows(group: str, option: str | None, cls: type) -> list[KeyRow]:
    preset = yaml.safe_load((CONFIGS / group / f"{option}.yaml").read_text(encoding="utf-8")) if option else {}
    rows = []
    for name, key in keys(cls, {}, f"{group}.").items():
        word = name.removeprefix(f"{group}.")
        default = convert(key, preset[word]) if word in preset else key.default
        rows.append(KeyRow(name, option, _type(key), format_value(default), field_docs(cls)[word]))
    return rows


def manual(topic: str) -> str:
    """Return the manual of a group, of an option (`optim=muon`) or of a key (`optim.lr`).

    Args:
        topic: What the user asks for.

    Raises:
        RecipeError: There is no such group, option or key.
    """
    group, _, option = topic.partition("=")
    words = [field.name for field in fields(RunConfig)]
    if group in GROUPS and (not option or option in GROUPS[group]):
        return "\n\n".join(_option_manual(group, name) for name in ([option] if option else GROUPS[group]))
    rows = [row for row in all_keys() if row.key == topic or row.key.startswith(topic + ".")]
    if rows and topic in words and topic != rows[0].key:
        doc = class_doc(get_type_hints(RunConfig)[topic])
        return f"{topic}\n{indent(doc, '  ')}\n\n" + "\n".join(map(_entry, rows))
    if rows:
        versions: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            versions.setdefault((row.default, row.doc), []).append(row.option or "")
        several = len(versions) > 1 or (rows[0].option and len(rows) < len(GROUPS[topic.split(".")[0]]))
        return "\n".join(
            _entry(next(row for row in rows if (row.default, row.doc) == version))
            + (f"\n    with {topic.split('.')[0]}={' or '.join(options)}" if several else "")
            for version, options in versions.items()
        )
    options = [f"{g}={o}" for g in GROUPS for o in GROUPS[g]]
    guess = right_name(topic, [*dict.fromkeys(row.key for row in all_keys()), *words, *options])
    hint = question(guess) if guess else f"the groups are {', '.join(words)}"
    raise RecipeError(f"{topic} is neither a group nor a key: {hint}")


def overview() -> str:
    """Return every group with its options or keys."""
    lines = []
    for field in fields(RunConfig):
        inside = [row.key for row in all_keys() if row.key.split(".")[0] == field.name]
        options = ", ".join(f"{field.name}={option}" for option in GROUPS.get(field.name, {}))
        lines.append(f"{field.name:<11} {options or ', '.join(inside)}")
    return "\n".join(
        [*lines, "", "`aitrain show GROUP`, `aitrain show GROUP=OPTION` and `aitrain show GROUP.key` show more."]
    )


def _option_manual(group: str, option: str) -> str:
    rows = [row for row in all_keys() if row.option == option and row.key.startswith(f"{group}.")]
    head = f"{group}={option}\n{indent(class_doc(GROUPS[group][option]), '  ')}"
    return "\n".join([head, *map(_entry, rows)])


def _entry(row: KeyRow) -> str:
    default = "must be given" if row.default == MISSING else f"default {row.default}"
    return f"  {row.key}  ({row.type}; {default})\n    {row.doc}"
