"""A configuration as plain data and back."""

import pytest

from aitrain.config.frozen import from_plain, to_plain
from aitrain.errors import RecipeError
from aitrain.recipe import compose


def test_plain_data_holds_only_what_yaml_knows_and_says_the_options() -> None:
    config = compose("sft_lora", ["model.path=m", "data.path=d"])
    plain = to_plain(config)
    assert plain["adapter"] == {"option": "lora", "rank": 16, "alpha": 32.0, "dropout": 0.0, "target_modules": None}
    assert plain["trainer"]["precision"] == "bf16" and "option" not in plain["trainer"]
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
