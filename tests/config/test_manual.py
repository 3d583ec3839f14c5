"""The manual: every key has a docstring, and is found by group, option and name."""

import pytest

from aitrain.config import GROUPS
from aitrain.config.manual import all_keys, class_doc, field_docs, manual, overview
from aitrain.config.optim import AdamW8bit
from aitrain.errors import RecipeError


def test_every_key_of_every_option_is_documented() -> None:
    rows = all_keys()
    assert {(row.key, row.option) for row in rows} >= {("seed", None), ("optim.lr", "sgd"), ("trainer.devices", None)}
    assert len({(row.key, row.option) for row in rows}) == len(rows)
    for row in rows:
        assert len(row.doc) > 15 and row.type and row.default, row
    for options in GROUPS.values():
        for cls in options.values():
            assert class_doc(cls) and not class_doc(cls).startswith(cls.__name__ + "("), f"{cls} has no docstring"


def test_docstrings_of_parents_are_inherited() -> None:
    assert field_docs(AdamW8bit)["lr"].startswith("Peak learning rate")
    assert field_docs(AdamW8bit)["eps"] == "Added to the root of the second moment."


def test_defaults_are_those_a_user_gets_the_options_file_included() -> None:
    defaults = {(row.key, row.option): row.default for row in all_keys()}
    assert defaults["optim.lr", "adamw"] == "2e-5" and defaults["optim.lr", "muon"] == "0.02"
    assert defaults["model.path", None] == "???"


@pytest.mark.parametrize(
    ("topic", "holds"),
    [
        ("optim", ["optim=adamw", "optim=muon", "optim.nesterov"]),
        ("optim=sgd", ["optim=sgd", "optim.momentum  (float; default 0)"]),
        ("trainer", ["Length, batch and devices", "trainer.max_steps  (whole number or null; default null)"]),
        ("optim.lr", ["default 2e-5", "with optim=muon"]),
        ("model.path", ["must be given"]),
        ("strategy", ["strategy=ddp", "arXiv:2006.15704"]),
        ("seed", ["default 0"]),
    ],
)
def test_topics(topic: str, holds: list[str]) -> None:
    text = manual(topic)
    assert all(word in text for word in holds), text


def test_a_misspelt_topic_names_the_nearest() -> None:
    for topic, guess in [("optim.lrr", "optim.lr"), ("optm", "optim"), ("optim=muonn", "optim=muon")]:
        with pytest.raises(RecipeError) as caught:
            manual(topic)
        assert f"did you mean {guess}?" in str(caught.value)


def test_the_overview_names_every_group() -> None:
    assert "strategy=fsdp" in overview() and "trainer.max_steps" in overview()
