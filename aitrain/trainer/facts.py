"""Checksums of the model and the data of a run, taken at its start and compared when it is resumed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from aitrain.config import RunConfig
from aitrain.config.custom import UserClass
from aitrain.errors import RecipeError
from aitrain.io.user_code import digests

Facts = dict[str, Any]
"""Plain values, as kept under `facts` in `run.yaml` and in every checkpoint."""


def code_facts(config: RunConfig) -> Facts:
    """Return checksums of the user's own Python files that a run uses; empty if there are none.

    Args:
        config: The run.
    """
    groups = [getattr(config, field.name) for field in fields(config)]
    files = [group.file for group in groups if isinstance(group, UserClass)]
    files += [word.rpartition(":")[0] for word in config.trainer.callbacks]
    found = {name: digest for file in files for name, digest in digests(file).items()}
    return {"code": found} if found else {}


def first_difference(then: Facts, now: Facts, config: RunConfig) -> str | None:
    """Return how what is there now differs from what the run began with, or None.

    Args:
        then: Facts of the run; empty in runs from before such facts were kept.
        now: Facts of today; what is absent is not compared.
        config: The run, for the message.
    """
    place = f"model.path={config.model.path}"
    if "model" in then and "model" in now:
        for name in sorted({*then["model"], *now["model"]}):
            old, new = then["model"].get(name), now["model"].get(name)
            if old != new:
                what = "has been removed" if new is None else "has been added" if old is None else "has changed"
                return f"{place}: {name} {what} since the run started"
    for name in sorted({*then.get("code", {}), *now.get("code", {})} if "code" in then and "code" in now else ()):
        if then["code"].get(name) != now["code"].get(name):
            return f"{name}: your code has changed since the run started"
    for key in [key for key in then if key not in ("model", "data", "code")]:
        if key in now and then[key] != now[key]:
            return f"{place}: the {key.replace('_', ' ')} has changed since the run started"
    return _data_difference(then.get("data", {}), now.get("data", {}), config.task.unit)


def _units(account: Facts) -> int:
    return int(account["units"] if "units" in account else account["tokens"])  # as older runs have it


def _data_difference(then: Facts, now: Facts, unit: str) -> str | None:
    for key in ("train", "validation"):
        old, new = then.get(key), now.get(key)
        if old is None or new is None:
            continue
        if old["samples"] != new["samples"]:
            return f"{new['file']}: {new['samples']:,} samples now, {old['samples']:,} when the run started"
        if old["sha256"] != new["sha256"]:
            return f"{new['file']} has changed since the run started, although it still has as many samples"
        if _units(old) == _units(new):
            continue
        return f"{new['file']}: {_units(new):,} {unit} now, {_units(old):,} when the run started"
    return None


def refuse_difference(then: Facts, now: Facts, config: RunConfig, run: Path) -> None:
    """Refuse to continue a run whose model or data has changed.

    Args:
        then: Facts of the run.
        now: Facts of today.
        config: The run.
        run: Its directory.

    Raises:
        RecipeError: They differ; the message names the first difference.
    """
    difference = first_difference(then, now, config)
    if difference is not None:
        raise RecipeError(
            f"{difference}: restore what {run} started with, start a new run, or add --changed-inputs to continue with "
            "what is there now"
        )
