"""`aitrain init`: a folder to start from, with a recipe, ten sample records or your own file, and the commands."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from aitrain.config import GROUPS, RunConfig
from aitrain.config.data import Images, Labelled, Pairs, Preferences, Readable, Records, Series, Tagged, Text
from aitrain.config.model import Model
from aitrain.config.paths import listed
from aitrain.config.source import RECIPES, find, header, model_of, names, short
from aitrain.config.trainer import AUTO, FEW_STEPS
from aitrain.config.values import Faults
from aitrain.data.column_names import proposed, words
from aitrain.data.records import read_records
from aitrain.data.series_reading import proposed_reading
from aitrain.errors import DataError, RecipeError
from aitrain.io import write_text
from aitrain.io.table import table
from aitrain.models.assets import SHIPPED
from aitrain.models.folder import inspect
from aitrain.recipe import compose, parse_overrides
from aitrain.tasks.data_files import source_of

SAMPLES = RECIPES / "samples"
LANGUAGE_MODEL, IMAGE_MODEL = "asset:smollm2-135m-instruct", "asset:tiny-convnext"

_FILES: dict[type, str] = {
    Records: "sft.csv",
    Text: "pretrain.txt",
    Labelled: "classify_text.csv",
    Tagged: "tag_tokens.jsonl",
    Pairs: "pairs.jsonl",
    Preferences: "preference.jsonl",
}
"""Keys of the group `data` -> file with ten sample records."""

_WANTED: dict[type, tuple[tuple[str, ...], ...]] = {
    Records: (("prompt", "completion"), ("messages",), ("instruction", "output"), ("conversations",)),
    Text: (("text",),),
    Labelled: (("text", "label"),),
    Tagged: (("text", "entities"), ("tokens", "labels")),
    Pairs: (("query", "positive"),),
    Preferences: (("prompt", "chosen", "rejected"), ("prompt", "completion", "label")),
    Series: (("time",),),
    Images: (("image", "label"),),
}
"""Keys of the group `data` -> the columns of which one set must be there."""

_LENGTH = ("trainer.max_steps", "trainer.max_epochs", "trainer.global_batch_samples")
"""Keys that decide on the number of steps."""

_SAMPLE_HOURS = 3000


@dataclass
class Project:
    """Contents of a project folder."""

    folder: Path
    recipe: str
    data: str | None = None
    """The user's own data; None = ten sample records."""

    model: str | None = None
    """The model; None = that of the recipe, or a small one."""

    values: dict[str, Any] = field(default_factory=dict)
    """Dotted keys that the user has given, without those of data and model."""

    words: tuple[str, ...] = ()
    """The same, as the user wrote them."""

    @property
    def keys(self) -> Readable:
        """The group `data` of the recipe, with what the user has given."""
        return _data_keys(self.recipe, self.words)


def init(words_given: Sequence[str], data: str | None, model: str | None) -> Project:
    """Make a project folder.

    Args:
        words_given: `[RECIPE] FOLDER` and words `key=value`; without a recipe, the user is asked.
        data: The user's own data; None = ten sample records.
        model: The model; None = that of the recipe, or a small one.

    Returns:
        What was made.

    Raises:
        RecipeError: The folder exists already, a word cannot be used, or data or model are given twice.
        DataError: The data cannot be read, or its columns are not recognised.
    """
    faults = Faults()
    changes = parse_overrides([word for word in words_given if "=" in word], faults)
    if faults.lines:
        raise RecipeError(faults.lines)
    values = {change.key_or_group: change.value() for change in changes}
    data, model = _once("--data", data, "data.path", values), _once("--model", model, "model.path", values)
    words = tuple(str(change.input_line) for change in changes if change.key_or_group in values)
    plain = [word for word in words_given if "=" not in word]
    if len(plain) == 1:
        recipe, data, model = _asked(data, model)
        plain = [recipe, *plain]
    if len(plain) != 2:
        raise RecipeError("aitrain init needs a recipe and a folder, for instance `aitrain init sft_lora my-project`")
    find(plain[0])
    project = Project(Path(plain[1]), plain[0], data, model, values, words)
    if project.folder.exists() and (not project.folder.is_dir() or any(project.folder.iterdir())):
        raise RecipeError(f"{project.folder} exists already: choose a new folder")
    content = _recipe(project)  # refuses what cannot be read, before anything is made
    project.folder.mkdir(parents=True, exist_ok=True)
    if project.data is None:
        _write_samples(project)
    write_text(project.folder / "recipe.yaml", content)
    write_text(project.folder / "README.md", readme(project))
    return project


def _once(option: str, given: str | None, key: str, values: dict[str, Any]) -> str | None:
    """Return what an option, or the key of the same meaning, says; take the key out of the values."""
    if key not in values:
        return given
    value = values.pop(key)
    if given is not None:
        raise RecipeError(f"{option} {given} and {key}={value} mean the same: write one of them")
    return json.dumps(value) if isinstance(value, list) else "null" if value is None else str(value)


def _asked(data: str | None, model: str | None) -> tuple[str, str | None, str | None]:
    """Ask for what was not given; refuse if this is not a terminal."""
    if not sys.stdin.isatty():
        raise RecipeError(
            "aitrain init needs a recipe when it is not run in a terminal, for instance `aitrain init sft_lora "
            f"my-project` (recipes: {', '.join(names())})"
        )
    print(table(["recipe", "you have", "you get"], [[name, *short(find(name))[:2]] for name in names()]))
    recipe = input("\nWhich recipe? [sft_lora] ").strip() or "sft_lora"
    find(recipe)
    data = data or input("Your data, a file or folder? [ten sample records] ").strip() or None
    model = model or input(f"Which model? [{_model(recipe, None)}] ").strip() or None
    return recipe, data, model


@cache
def _config(recipe: str, words: tuple[str, ...] = ()) -> RunConfig:
    """Return a recipe with the user's words, or refuse them; data and model are not looked at."""
    return compose(recipe, ["data.path=d", *([] if _own_model(recipe) else ["model.path=m"]), *words])


def _data_keys(recipe: str, words: tuple[str, ...] = ()) -> Readable:
    """Return the group `data` of a recipe with the user's words, or refuse them."""
    found = _config(recipe, words).data
    assert isinstance(found, Readable), "shipped recipes read files"
    return found


def _own_model(recipe: str) -> str | None:
    """Return the model that a recipe names, `null` if it needs none; None if the user chooses it."""
    found = model_of(find(recipe))
    return "null" if found is None else None if found == "???" else found


def _model(recipe: str, given: str | None) -> str:
    if given is not None:
        return given
    return _own_model(recipe) or (IMAGE_MODEL if isinstance(_data_keys(recipe), Images) else LANGUAGE_MODEL)


def _recipe(project: Project) -> str:
    """Return the recipe file: what was chosen with a comment each, and what else one may want to set."""
    keys, path = project.keys, _model(project.recipe, project.model)
    title, *_ = header(find(project.recipe))
    tree: dict[str, Any] = {"run": {"name": project.folder.name}}
    if path != "null":
        tree["model"] = {"path": path} | _template(project, path)
    tree["data"] = {"path": _data_path(project, keys)}
    tree["data"] |= {} if project.data is None else _reading(project, keys)
    tree["data"] |= _length(project, keys, path)
    comments = _COMMENTS
    if _is_short(project, keys):
        tree["trainer"] = {"max_epochs": "auto", "global_batch_samples": "auto"}
        comments = _COMMENTS | _COMMENTS_ON_LENGTH
    _add_given(tree, project.values)
    lines = [f"# {title}", f"# Made by `aitrain init {project.recipe}`; `aitrain show` explains every key.", ""]
    lines.append(f"defaults: [{project.recipe}, _self_]")
    for group, values in tree.items():
        lines += [
            "",
            *(line + comments.get(f"{group}.{line.split(':')[0].strip()}", "") for line in _yaml(group, values)),
        ]
    more = [line for group, next_lines in _NEXT.items() if group not in tree for line in next_lines]
    lines += ["", "# What you may want to change next:", *more] if more else []
    return "\n".join(lines) + "\n"


_COMMENTS = {
    "model.path": "  # `aitrain models` lists others; or name your own folder",
    "model.chat_template": "  # the model has none of its own",
    "data.columns": "  # guessed from the column names: correct them here",
    "data.time_format": "  # guessed: day, month, year, hour (%H) and minute (%M)",
    "data.decimal": "  # numbers like 1,5",
    "data.sequence_tokens": "  # longest sample in tokens",
}
"""Key -> comment after its line."""

_COMMENTS_ON_LENGTH = {
    "trainer.max_epochs": "  # your data is small: as many passes over it as give about 100 steps, 3 to 10",
    "trainer.global_batch_samples": "  # samples per step, over all devices: 4 to 32",
}
"""The same, where the length is not that of the recipe."""

_NEXT = {
    "trainer": ["# trainer:", "#   max_epochs: 5", "#   global_batch_samples: 16"],
    "optim": ["# optim:", "#   lr: 1e-4"],
}
"""Groups of keys -> lines that show how they are set."""


def _data_path(project: Project, keys: Readable) -> str | list[str]:
    if project.data is not None:
        paths = [
            path if path.startswith("asset:") else os.path.abspath(os.path.expanduser(path))
            for path in listed(project.data)
        ]
        return paths[0] if len(paths) == 1 else paths
    return os.path.abspath(project.folder / _sample_name(keys))


def _sample_name(keys: Readable) -> str:
    if isinstance(keys, Images):
        return "images"
    return "data.csv" if isinstance(keys, Series) else f"data{Path(_FILES[type(keys)]).suffix}"


def _reading(project: Project, keys: Readable) -> dict[str, Any]:
    """Return how the user's data is read where that is not as the recipe expects, or refuse it."""
    columns = _columns(project, keys)
    if not isinstance(keys, Series):
        return {"columns": columns} if columns else {}
    source = replace(source_of(str(project.data), keys), columns={})
    rows = [record for _, record in islice(read_records(source), 1000) if not isinstance(record, DataError)]
    return proposed_reading(rows, keys, columns)


def _columns(project: Project, keys: Readable) -> dict[str, str]:
    """Return which of the user's columns is which, where they have other names than aitrain reads, or refuse them."""
    assert project.data is not None, "asked for data of the user's"
    source = source_of(project.data, keys)
    if any(key.startswith("data.columns") for key in project.values):
        return {}
    if source.files[0].is_dir() or all(file.suffix.lower() in (".txt", ".md", ".docx") for file in source.files):
        return {}
    read = [record for _, record in islice(read_records(source), 20)]
    first = next((record for record in read if not isinstance(record, DataError)), None)
    if first is None:
        assert isinstance(read[0], DataError), "there is a first record, or reading it was refused"
        raise read[0]
    wanted = _WANTED[type(keys)]
    if any(all(name in first for name in each) for each in wanted):
        return {}
    for each in wanted:
        found = proposed(first, each)
        if found:
            return {name: column for name, column in found.items() if name != column}
    told = words(dict.fromkeys(wanted[0], "COLUMN"))
    there = ", ".join(map(repr, first))
    told = "\n".join([f"{project.data}: it is not clear what the columns {there} hold. Add {told}", *source.notes()])
    raise DataError(told)


def _template(project: Project, path: str) -> dict[str, Any]:
    """Choose a chat template for a language model that has none."""
    if not isinstance(project.keys, (Records, Preferences)):
        return {}
    facts = inspect(Model(path=path))
    return {} if facts.faults or facts.has_chat_template else {"chat_template": "chatml"}


def _length(project: Project, keys: Readable, path: str) -> dict[str, Any]:
    """Return a length that fits the model's context, where the recipe's own does not."""
    longest = getattr(keys, "sequence_tokens", None)
    if longest is None or path == "null":
        return {}
    task = _config(project.recipe, project.words).task
    room = inspect(Model(path=path), task.model_kind).context_tokens if task.model_kind else None
    return {"sequence_tokens": room} if room is not None and room < longest else {}


def _is_short(project: Project, keys: Readable) -> bool:
    """Whether the recipe's own epochs and global batch give too few steps with so little data."""
    if isinstance(keys, (Text, Series)) or any(key.startswith(_LENGTH) for key in project.values):
        return False  # samples are not records there, or the user has chosen
    trainer = _config(project.recipe, project.words).trainer
    batch, epochs = trainer.global_batch_samples, trainer.max_epochs
    if AUTO in (batch, epochs) or epochs is None or trainer.max_steps is not None:
        return False
    if project.data is None:
        return True
    source = source_of(project.data, keys)
    is_folder = source.files[0].is_dir()
    found = (path for path in source.files[0].rglob("*") if path.is_file()) if is_folder else read_records(source)
    enough = round(2 * FEW_STEPS * batch / epochs) + (keys.validation_samples or 0)
    size = sum(1 for _ in islice(found, enough))
    return (size - (keys.held_out_samples(size) or 0)) * epochs < FEW_STEPS * batch


def _add_given(tree: dict[str, Any], values: dict[str, Any]) -> None:
    """Put the keys that the user has given into the recipe."""
    for name, value in values.items():
        if name in GROUPS:
            raise RecipeError(f"{name}={value} chooses an option: write it into the defaults list of recipe.yaml")
        *parents, last = name.split(".")
        inner = tree
        for word in parents:
            inner = inner.setdefault(word, {})
        inner[last] = value


def _yaml(group: str, values: Any) -> list[str]:
    text = io.StringIO()
    yaml.safe_dump({group: values}, text, allow_unicode=True, sort_keys=False, default_flow_style=False, width=1000)
    return text.getvalue().splitlines()


def _write_samples(project: Project) -> None:
    keys = project.keys
    to = project.folder / _sample_name(keys)
    if isinstance(keys, Series):
        lines = (SHIPPED / "weather-hours" / "year.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(to, "".join(_one_value(line) for line in lines[: _SAMPLE_HOURS + 1]))
    elif isinstance(keys, Images):
        _write_images(to)
    else:
        shutil.copyfile(SAMPLES / _FILES[type(keys)], to)


def _one_value(line: str) -> str:
    """Keep the time and the temperature of a row of the weather data."""
    cells = line.rstrip("\n").split(",")
    return f"{cells[0]},{'value' if cells[3] == 'temperature' else cells[3]}\n"


def _write_images(to: Path) -> None:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(SHIPPED / "garments" / "train.parquet").to_pylist()
    for number, row in enumerate(rows[::4]):
        content = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
        file = to / str(row["label"]) / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def readme(project: Project) -> str:
    """Return the README of a project: the three commands, and what to do next.

    Args:
        project: The project.
    """
    recipe = shlex.quote(str(project.folder / "recipe.yaml"))
    talks = isinstance(project.keys, (Records, Preferences, Text))
    use = "aitrain chat RUN" if talks else "aitrain predict RUN FILE"
    model = _model(project.recipe, project.model)
    fetch = [f"aitrain fetch {model.removeprefix('asset:')}  # once"] if model.startswith("asset:") else []
    have, get, machine = short(find(project.recipe))
    sample = "the file in this folder, ten samples in the right format: replace them with your own"
    lines = [f"# {project.folder.name}", "", f"From {have}: {get}.", "", "```bash", *fetch]
    lines += [f"aitrain check {recipe}   # what will run, and what is wrong", f"aitrain train {recipe}"]
    lines += [f"{use}   # RUN is printed by train", "```", ""]
    lines += [f"- Data: {sample if project.data is None else project.data}", f"- Model: {model}"]
    lines += [f"- Smallest machine: {machine}", "- Keys: `recipe.yaml`; `aitrain show` explains each"]
    return "\n".join(lines) + "\n"
