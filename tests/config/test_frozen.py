"""A configuration as plain data and back."""

from pathlib import Path

import pytest

from aitrain.config.frozen import continuation, from_plain, to_plain
from aitrain.errors import RecipeError
from aitrain.recipe import compose


def test_plain_data_holds_only_what_yaml_knows_and_says_the_options() -> None:
    config = compose("sft_lora", ["model.path=m", "data.path=d"])
    plain = to_plain(config)
    adapter = {"option": "lora", "rank": 16, "alpha": 32.0, "dropout": 0.0, "target_modules": None}
    assert plain["adapter"] == {**adapter, "modules_to_save": None}
    assert (
        plain["trainer"]["precision"] == "auto" == plain["trainer"]["max_epochs"] and "option" not in plain["trainer"]
    )
    assert from_plain(plain) == config


def test_a_key_that_is_absent_takes_its_default_so_that_older_runs_load() -> None:
    config = compose("sft_lora", ["model.path=m", "data.path=d"])
    plain = to_plain(config)
    del plain["export"], plain["trainer"]["nodes"], plain["seed"]
    assert from_plain(plain) == config


def test_every_fault_is_told_at_once() -> None:
    plain = to_plain(compose("sft_lora", ["model.path=m", "data.path=d"]))
    plain["optim"]["option"] = "adam"
    plain["trainer"]["max_epochs"] = "many"
    plain["sed"] = 1
    with pytest.raises(RecipeError) as caught:
        from_plain(plain)
    found = "\n".join(caught.value.faults)
    assert "optim.option=adam" in found and "trainer.max_epochs=many" in found and "did you mean seed?" in found


def test_a_recipe_given_again_may_differ_only_where_losses_do_not_depend_on_it() -> None:
    before = compose("sft_lora", ["model.path=m", "data.path=d", "run.dir=/a/run"])
    words = ["model.path=m", "data.path=d", "run.dir=run"]
    same = continuation(
        before, compose("sft_lora", [*words, "trainer.max_steps=9", "trainer.max_epochs=null"]), Path("r")
    )
    assert same.trainer.max_steps == 9 and same.run.dir == "/a/run"
    with pytest.raises(RecipeError) as caught:
        continuation(before, compose("sft_lora", [*words, "optim=sgd", "seed=4", "cluster.account=a"]), Path("r"))
    faults = caught.value.faults
    assert "seed=4, but the run in r has 0: give the same, or choose a new run.dir for a new run" in faults
    assert "optim=sgd, but the run in r has adamw" in "\n".join(faults)
    assert len(faults) == 2, "neither the cluster nor the keys that only one optimizer has"
