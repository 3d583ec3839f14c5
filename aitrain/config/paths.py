"""Paths of a configuration that mean the same from every directory and on every node."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import fields, replace

from omegaconf import MISSING

from aitrain.config.custom import UserClass
from aitrain.config.root import RunConfig


def listed(given: str) -> list[str]:
    """Return the files, folders and patterns that a key names; several are kept as a JSON list in its text.

    Args:
        given: Value of `data.path` or `data.validation_path`.
    """
    if given.startswith('["') and given.endswith('"]'):
        with suppress(ValueError):  # a file with an odd name
            return [str(name) for name in json.loads(given)]
    return [given]


def title_of(given: str) -> str:
    """Return the file names that a key names, without their folders.

    Args:
        given: Value of `data.path` or `data.validation_path`.
    """
    return ", ".join(os.path.basename(path.rstrip("/")) for path in listed(given))


def absolute_paths(config: RunConfig) -> RunConfig:
    """Return a configuration whose relative paths, and those with `~`, are absolute.

    Assets (`asset:NAME`) and names on a hub stay as they are.

    Args:
        config: A checked configuration.
    """
    training_files = _all_absolute(config.data.path)
    assert training_files is not None, "data.path has a value"
    config = replace(
        config,
        trainer=replace(config.trainer, callbacks=[_callback(word) for word in config.trainer.callbacks]),
        run=replace(config.run, dir=_absolute(config.run.dir)),
        model=replace(
            config.model,
            path=None if config.model.path is None else _model(config.model.path),
            chat_template=_template(config.model.chat_template),
        ),
        data=replace(config.data, path=training_files, validation_path=_all_absolute(config.data.validation_path)),
        checkpoint=replace(config.checkpoint, path=_absolute(config.checkpoint.path)),
    )
    for name in (field.name for field in fields(config)):
        group = getattr(config, name)
        if isinstance(group, UserClass):
            file = os.path.abspath(os.path.expanduser(group.file))
            config = replace(config, **{name: replace(group, file=file)})  # type: ignore[arg-type]
    return config


def _callback(word: str) -> str:
    file, _, name = word.rpartition(":")
    return f"{_absolute(file)}:{name}"


def _absolute(path: str | None) -> str | None:
    if path is None or path == MISSING or path.startswith("asset:"):
        return path
    return os.path.abspath(os.path.expanduser(path))


def _template(given: str | None) -> str | None:
    """A word without a dot or a slash is the name of a template, unless a file of that name is here."""
    if given is not None and given.isalnum() and not os.path.exists(given):
        return given
    return _absolute(given)


def _all_absolute(given: str | None) -> str | None:
    """Make each of the paths that a key names absolute."""
    if given is None or given == MISSING:
        return given
    found = [str(_absolute(path)) for path in listed(given)]
    return found[0] if len(found) == 1 else json.dumps(found, ensure_ascii=False)


def _model(path: str) -> str:
    """A name without a file of that name here may be one on a hub."""
    absolute = _absolute(path)
    assert absolute is not None, "model.path has a value"
    is_file_name = path.startswith(("~", "/", ".")) or path.endswith(".gguf") or os.path.exists(absolute)
    return absolute if is_file_name else path
