"""Paths of a configuration that mean the same from every directory and on every node."""

from __future__ import annotations

import os
from dataclasses import fields, replace

from omegaconf import MISSING

from aitrain.config.custom import UserClass
from aitrain.config.root import RunConfig


def absolute_paths(config: RunConfig) -> RunConfig:
    """Return a configuration whose relative paths, and those with `~`, are absolute.

    Assets (`asset:NAME`) and names on a hub stay as they are.

    Args:
        config: A checked configuration.
    """
    training_file = _absolute(config.data.path)
    assert training_file is not None, "data.path has a value"
    config = replace(
        config,
        trainer=replace(config.trainer, callbacks=[_callback(word) for word in config.trainer.callbacks]),
        run=replace(config.run, dir=_absolute(config.run.dir)),
        model=replace(
            config.model,
            path=None if config.model.path is None else _model(config.model.path),
            chat_template=_absolute(config.model.chat_template),
        ),
        data=replace(config.data, path=training_file, validation_path=_absolute(config.data.validation_path)),
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


def _model(path: str) -> str:
    """A name without a file of that name here may be one on a hub."""
    absolute = _absolute(path)
    assert absolute is not None, "model.path has a value"
    is_file_name = path.startswith(("~", "/", ".")) or path.endswith(".gguf") or os.path.exists(absolute)
    return absolute if is_file_name else path
