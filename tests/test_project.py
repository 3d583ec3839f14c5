"""`aitrain init` makes a folder whose recipe is accepted as it is, from sample records or from the user's own file."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import pytest
import yaml

from aitrain.config.source import names
from aitrain.config.trainer import AUTO
from aitrain.errors import AitrainError, DataError, RecipeError
from aitrain.preflight import data_faults
from aitrain.project import init
from aitrain.recipe import compose
from aitrain.tasks.registry import task_of
from aitrain.trainer.inspection import audit

MODELS = {"classify_image": "asset:tiny-convnext", "forecast_timeseries": None}


@pytest.mark.parametrize("recipe", [name for name in names() if name not in ("quickstart", "sft_qlora")])
def test_the_sample_records_of_every_recipe_pass_its_check(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    project = init([recipe, str(tmp_path / "mine")], None, MODELS.get(recipe, "asset:tiny-llama"))
    config = compose(str(project.folder / "recipe.yaml"), ["trainer.accelerator=cpu"])
    assert config.run.name == "mine" and not data_faults(config)
    audit(config, show=0)
    assert "samples" in capsys.readouterr().out
    assert len(task_of(config).config.data.path) > 0 and "aitrain train" in (project.folder / "README.md").read_text()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=";", lineterminator="\r\n")
    writer.writerows([["Vraag van klant", "antwoord", "klant"], *([f"Hoe {n}?", f"Zo, één {n}", n] for n in range(12))])
    (tmp_path / "export.csv").write_bytes(text.getvalue().encode("cp1252"))
    return tmp_path / "export.csv"


def test_columns_of_ones_own_file_are_proposed_in_the_recipe(tmp_path: Path, export: Path) -> None:
    project = init(["sft_lora", str(tmp_path / "mine")], str(export), "asset:tiny-llama")
    written = yaml.safe_load((project.folder / "recipe.yaml").read_text())
    assert written["data"]["path"] == str(export)
    assert written["data"]["columns"] == {"prompt": "Vraag van klant", "completion": "antwoord"}
    assert written["data"]["sequence_tokens"] == 512  # the model's context
    assert not (project.folder / "data.csv").exists()


def test_what_cannot_be_told_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a;b\n1;2\n")
    with pytest.raises(DataError, match=r"what the columns 'a', 'b' hold. Add data.columns.prompt=COLUMN"):
        init(["sft_lora", str(tmp_path / "mine")], str(tmp_path / "a.csv"), "asset:tiny-llama")
    assert not (tmp_path / "mine").exists()
    words = ["sft_lora", str(tmp_path / "mine"), "data.columns.prompt=a", "data.columns.completion=b", "optim.lr=1e-3"]
    project = init(words, str(tmp_path / "a.csv"), "asset:tiny-llama")
    config = compose(str(project.folder / "recipe.yaml"), [])
    assert config.data.columns == {"prompt": "a", "completion": "b"}  # type: ignore[attr-defined]
    assert config.optim.lr == 1e-3
    with pytest.raises(RecipeError, match="mine exists already"):
        init(words, None, None)


def test_keys_count_as_the_options_of_the_same_meaning(tmp_path: Path, export: Path) -> None:
    by_option = init(["sft_lora", str(tmp_path / "one")], str(export), "asset:tiny-llama")
    words = [f"data.path={export}", "model.path=asset:tiny-llama"]
    by_key = init(["sft_lora", str(tmp_path / "two"), *words], None, None)
    texts = [(project.folder / "recipe.yaml").read_text() for project in (by_option, by_key)]
    assert texts[0].replace("name: one", "name: two") == texts[1] and "sequence_tokens: 512" in texts[1]
    assert sorted(path.name for path in by_key.folder.iterdir()) == ["README.md", "recipe.yaml"], "no samples"
    with pytest.raises(RecipeError, match="--model other and model.path=asset:tiny-llama mean the same"):
        init(["sft_lora", str(tmp_path / "three"), words[1]], None, "other")
    files = [tmp_path / "files" / name for name in ("a.csv", "b.csv")]
    files[0].parent.mkdir()
    for file in files:
        file.write_bytes(export.read_bytes())
    for number, path in enumerate([str(files[0].parent), f"{files[0].parent}/*.csv", [str(file) for file in files]]):
        word = f"data.path={path}" if isinstance(path, str) else f"data.path=[{','.join(path)}]"
        several = init(["sft_lora", str(tmp_path / f"several{number}"), word, words[1]], None, None)
        assert yaml.safe_load((several.folder / "recipe.yaml").read_text())["data"] == {
            "path": path,
            "columns": {"prompt": "Vraag van klant", "completion": "antwoord"},
            "sequence_tokens": 512,
        }


def test_keys_are_checked_and_used_to_read_the_data(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="optm.lr"):
        init(["sft_lora", str(tmp_path / "mine"), "optm.lr=3"], None, "asset:tiny-llama")
    assert not (tmp_path / "mine").exists()
    (tmp_path / "a.csv").write_text("made by a program\nvraag~antwoord\nHoe, en waar?~Zo, daar\nWie?~Jij\n")
    words = ["sft_lora", str(tmp_path / "mine"), 'data.delimiter="~"', "data.header_row=2"]
    project = init(words, str(tmp_path / "a.csv"), "asset:tiny-llama")
    written = yaml.safe_load((project.folder / "recipe.yaml").read_text())["data"]
    assert written["columns"] == {"prompt": "vraag", "completion": "antwoord"}
    assert (written["delimiter"], written["header_row"]) == ("~", 2)


@pytest.mark.parametrize(("records", "is_short"), [(80, True), (440, True), (450, False)])
def test_small_data_gets_enough_steps(tmp_path: Path, records: int, is_short: bool) -> None:
    """A tenth is held out: 450 records make 50.6 steps with the recipe's batch of 32 and 4 epochs."""
    rows = "".join(f"Bericht {number}\t{'AB'[number % 2]}\n" for number in range(records))
    (tmp_path / "a.tsv").write_text(f"Tekst\tAfdeling\n{rows}")
    project = init(["classify_text", str(tmp_path / "mine")], str(tmp_path / "a.tsv"), "asset:tiny-llama")
    text = (project.folder / "recipe.yaml").read_text()
    keys = compose(str(project.folder / "recipe.yaml"), []).trainer
    assert ((keys.max_epochs, keys.global_batch_samples) == (AUTO, AUTO)) is is_short
    assert ("your data is small" in text) is is_short and ("# trainer:" in text) is not is_short
    chosen = init(
        ["classify_text", str(tmp_path / "own"), "trainer.max_epochs=7"], str(tmp_path / "a.tsv"), "asset:tiny-llama"
    )
    own = compose(str(chosen.folder / "recipe.yaml"), []).trainer
    assert (own.max_epochs, own.global_batch_samples) == (7, 32), "the user has chosen"


def test_a_meter_export_is_read_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """German times, decimal commas and names: `init` writes what reading them takes, and `check` accepts it."""
    rows = [
        f"{day:02d}.{month:02d}.2025;{meter};{day},{month}"
        for month in range(1, 8)
        for day in range(1, 29)
        for meter in ("Büro", "Halle")
    ]
    rows.insert(0, "Datum;Zähler;Verbrauch")
    (tmp_path / "a.csv").write_bytes("\r\n".join(rows).encode("cp1252"))
    words = ["forecast_timeseries", str(tmp_path / "mine"), "data.gaps=mask"]
    project = init(words, str(tmp_path / "a.csv"), None)
    written = yaml.safe_load((project.folder / "recipe.yaml").read_text())["data"]
    assert written["columns"] == {"time": "Datum", "value": "Verbrauch", "series": "Zähler"}
    assert (written["time_format"], written["decimal"]) == ("%d.%m.%Y", "comma")
    audit(compose(str(project.folder / "recipe.yaml"), ["trainer.accelerator=cpu"]), show=0)
    assert "2 series, steps of one day" in capsys.readouterr().out


def test_few_images_in_folders_get_enough_steps(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    project = init(["classify_image", str(tmp_path / "mine")], str(tmp_path / "images"), None)
    assert "max_epochs: auto" in (project.folder / "recipe.yaml").read_text()


def test_a_base_model_gets_a_template(tmp_path: Path) -> None:
    import shutil

    from aitrain.models.assets import resolve

    shutil.copytree(resolve("asset:tiny-llama"), tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    project = init(["sft_full", str(tmp_path / "mine")], None, str(tmp_path / "base"))
    assert compose(str(project.folder / "recipe.yaml"), []).model.chat_template == "chatml"


def test_without_a_recipe_the_user_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        RecipeError, match="needs a recipe when it is not run in a terminal, for instance `aitrain init sft_lora"
    ):
        init([str(tmp_path / "mine")], None, None)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    answers = iter(["", "", "asset:tiny-llama"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    project = init([str(tmp_path / "mine")], None, None)
    assert (project.recipe, project.data, project.model) == ("sft_lora", None, "asset:tiny-llama")
    with pytest.raises(AitrainError, match="recipe sft_loro is not known"):
        init(["sft_loro", str(tmp_path / "other")], None, None)
