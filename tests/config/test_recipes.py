"""Shipped recipes and options: each composes, each is short, each stands on its schema."""

from dataclasses import fields

import pytest
import yaml

from aitrain.config import GROUPS
from aitrain.config.source import CONFIGS, RECIPES, find, header, names
from aitrain.recipe import compose


@pytest.mark.parametrize("name", names())
def test_every_recipe_composes_and_is_short(name: str) -> None:
    config = compose(name, ["data.path=d", *([] if name == "forecast_timeseries" else ["model.path=m"])])
    assert config.check() == [] and config.run.name == name
    assert len(find(name).read_text().splitlines()) <= 20
    top = header(find(name))
    assert top[0].endswith(".") and any(
        line.startswith(("Takes: {", "Takes: a folder", "Takes: a .csv")) for line in top
    )
    assert any(line.startswith("Needs: ") for line in top)


def test_the_quickstart_needs_no_word_from_the_user() -> None:
    config = compose("quickstart")
    assert config.model.path == "asset:smollm2-135m-instruct" and config.has_validation
    assert config.evaluate.answered_samples == 30


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in GROUPS for o in GROUPS[g]])
def test_every_option_has_a_file_that_starts_from_its_schema(group: str, option: str) -> None:
    content = yaml.safe_load((CONFIGS / group / f"{option}.yaml").read_text())
    assert content.pop("defaults") == [f"_{option}", "_self_"]
    assert set(content) <= {field.name for field in fields(GROUPS[group][option])}


def test_there_is_no_option_file_without_a_schema() -> None:
    files = {(path.parent.name, path.stem) for path in CONFIGS.glob("*/*.yaml")}
    assert files == {(group, option) for group in GROUPS for option in GROUPS[group]}


def test_base_chooses_one_option_of_every_group() -> None:
    entries = yaml.safe_load((CONFIGS / "base.yaml").read_text())["defaults"]
    chosen = {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}
    assert chosen == {"task": "sft", "data": "records", "adapter": "none", "optim": "adamw"} | {
        "schedule": "cosine",
        "strategy": "ddp",
        "logger": "jsonl",
    }
    assert RECIPES.is_dir()
