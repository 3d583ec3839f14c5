"""Recipe files: found, read, described by their header."""

from pathlib import Path

from aitrain.config.source import find, header, layers, model_of, names, short
from aitrain.config.values import Faults


def test_shipped_recipes_are_found_by_name_and_any_by_path(tmp_path: Path) -> None:
    assert "sft_lora" in names()
    assert find("sft_lora").name == "sft_lora.yaml"
    (tmp_path / "sft_lora.yaml").write_text("x")
    assert find(str(tmp_path / "sft_lora.yaml")) == tmp_path / "sft_lora.yaml"


def test_every_key_knows_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# hello\n#   there\ndefaults: [base, _self_]\nseed: 1\noptim:\n  lr: 2e-5\n# no header\n")
    faults = Faults()
    (layer,) = layers(file, faults)
    assert not faults.lines
    assert layer.where("optim.lr") == f"{file}:6: " and layer.where("nowhere") == f"{file}: "
    assert layer.values == {"seed": 1, "optim": {"lr": 2e-5}}, "YAML's 2e-5 is a number here"
    assert header(file) == ["hello", "  there"]


def test_what_a_recipe_is_for_and_which_model_it_starts_from() -> None:
    assert short(find("quickstart"))[2] == "2 CPU cores, 4 GB" and all(len(short(find(name))) == 3 for name in names())
    assert model_of(find("classify_text")) == "asset:minilm-l6"
    assert model_of(find("sft_qlora")) == "???" and model_of(find("forecast_timeseries")) is None
