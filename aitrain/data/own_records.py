"""Records in the user's own format: read by their class, and checked like all others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from aitrain.config.custom import UserClass, typed_options
from aitrain.data.records import Placed, text_fault
from aitrain.errors import AitrainError, DataError, RecipeError
from aitrain.io.user_code import load_class


def reader_of(data: UserClass) -> Any:
    """Build the reader that a recipe names.

    Args:
        data: The recipe's group `data`.

    Raises:
        RecipeError: There is no such class, it has no method `read`, or its options are wrong.
    """
    found = load_class(data.file, data.class_, "data")
    if not callable(getattr(found, "read", None)):
        raise RecipeError(f"data.class={data.class_} has no method read(path): write one that yields (place, record)")
    made = found()
    made.options = typed_options(found, data.options, "data.options.")
    return made


def own_records(data: UserClass, path: Path, text_field: str | None) -> Iterator[Placed]:
    """Read every record of a file through the user's class.

    Args:
        data: The recipe's group `data`.
        path: The file.
        text_field: Key that must hold plain text in every record, or None.

    Yields:
        Place and record, or why it cannot be used.

    Raises:
        DataError: The reader fails, gives something else, or gives nothing.
    """
    count = 0
    try:
        for item in reader_of(data).read(path):
            count += 1
            if not (
                isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], dict)
            ):
                raise DataError(f"{path.name}: data.class={data.class_} yields {item!r:.80}, not a place and a record")
            where, record = cast(tuple[str, dict[str, Any]], item)
            fault = None if text_field is None else text_fault(record, text_field, where)
            yield where, fault or record
    except AitrainError:
        raise
    except Exception as error:
        raise DataError(
            f"{path.name}: data.class={data.class_} failed after record {count}: {type(error).__name__}: {error}"
        ) from error
    if not count:
        raise DataError(f"{path} contains no record for data.class={data.class_}: give a file with data")
