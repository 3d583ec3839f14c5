"""The manual of every key: docstrings of the dataclasses and of their fields, read from the source."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from textwrap import dedent


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
            named = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                docs[statement.target.id] = inspect.cleandoc(str(below.value.value))  # type: ignore[union-attr]
    return docs


def class_doc(cls: type) -> str:
    """Return the docstring of a dataclass on one line.

    Args:
        cls: The dataclass.
    """
    return " ".join((inspect.getdoc(cls) or "").split())
