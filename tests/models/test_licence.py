"""Licences are read where models tell them, and forbid what they forbid."""

from __future__ import annotations

from pathlib import Path

import pytest

from aitrain.config.run import Purpose
from aitrain.models.assets import resolve
from aitrain.models.licence import licence_faults, licence_of
from aitrain.preflight import model_faults
from aitrain.recipe import compose


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: apache-2.0\nlanguage: nl\n---\n# x", "apache-2.0"),
        ("---\nlanguage: nl\nlicense: other\nlicense_name: MNPL\n---\n", "mnpl"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: [cc-by-nc-4.0]\n---\n", "cc-by-nc-4.0"),
        ("---\r\nlicense: 'mit'\r\n---\r\n", "mit"),
        ("# A model\n\nlicense: mit\n", None),
        ("---\nlanguage: nl\n---\nlicense: mit\n", None),
    ],
)
def test_the_head_of_the_readme_tells_it(tmp_path: Path, readme: str, licence: str | None) -> None:
    (tmp_path / "README.md").write_text(readme, newline="")
    assert licence_of(tmp_path) == licence


def test_a_folder_without_a_readme_tells_none(tmp_path: Path) -> None:
    assert licence_of(tmp_path) is None and licence_of(resolve("asset:tiny-convnext")) == "mit"


@pytest.mark.parametrize(
    ("licence", "research", "commercial"),
    [
        ("apache-2.0", True, True),
        ("mit", True, True),
        ("llama3.1", True, True),
        ("cc-by-sa-4.0", True, True),
        ("cc-by-nc-4.0", True, False),
        ("cc-by-nc-sa-4.0", True, False),
        ("flux-1-dev-non-commercial-license", True, False),
        ("apple-amlr-research", True, False),
        ("mnpl", True, False),
        ("cc-by-nd-4.0", False, False),
        ("cc-by-nc-nd-4.0", False, False),
        ("other", False, False),
        (None, False, False),
    ],
)
def test_what_a_licence_forbids(licence: str | None, research: bool, commercial: bool) -> None:
    assert licence_faults("m", licence, None) == []
    assert (licence_faults("m", licence, Purpose.research) == []) == research
    assert (licence_faults("m", licence, Purpose.commercial) == []) == commercial


def test_a_run_is_refused_before_it_starts(tmp_path: Path) -> None:
    from shutil import copytree

    model = copytree(resolve("asset:tiny-convnext"), tmp_path / "model")
    (model / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    words = [f"model.path={model}", f"data.path={tmp_path}", "trainer.accelerator=cpu", "trainer.precision=fp32"]
    assert model_faults(compose("classify_image", words)) == []
    (fault,) = model_faults(compose("classify_image", [*words, "run.purpose=commercial"]))
    assert f"model.path={model} has the licence cc-by-nc-4.0, which forbids commercial use" in fault
    assert model_faults(compose("classify_image", [*words, "run.purpose=research"])) == []
    forecast = compose("forecast_timeseries", ["data.path=x.csv", "run.purpose=commercial"])
    assert model_faults(forecast) == [], "no base model, no licence"
