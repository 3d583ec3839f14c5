"""The ready scripts: what is committed in `launch/` is what the renderer makes of today's profiles."""

import subprocess
from pathlib import Path

import pytest

from aitrain.launch.ready import READY, ready_job, ready_script
from aitrain.launch.render import TEMPLATES


@pytest.mark.parametrize("name", READY)
def test_committed_scripts_are_up_to_date(name: str) -> None:
    committed = (TEMPLATES / f"{name}.sbatch").read_text(encoding="utf-8")
    assert committed == ready_script(name), f"launch/{name}.sbatch is behind its profile: run `make docs`"


def test_no_script_is_left_over() -> None:
    assert sorted(path.stem for path in TEMPLATES.glob("*.sbatch")) == sorted(READY)


def test_a_ready_script_asks_for_whole_nodes_and_a_day() -> None:
    job = ready_job("jupiter")
    assert (job.ask.nodes, job.devices, job.ask.minutes) == (1, 4, 720), "JUPITER allows 12 hours"


@pytest.mark.parametrize("name", READY)
def test_without_a_recipe_a_ready_script_says_how_to_use_it(name: str, tmp_path: Path) -> None:
    done = subprocess.run(["bash", TEMPLATES / f"{name}.sbatch"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and f"{name}.sbatch RECIPE key=value" in done.stderr
    assert list(tmp_path.iterdir()) == []
