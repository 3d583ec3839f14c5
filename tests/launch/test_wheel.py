"""An installed wheel carries profiles, template and ready scripts, and renders without the source tree."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from .specimens import PROFILES

ROOT = Path(__file__).resolve().parents[2]

LOOK = """
import json, sys
from pathlib import Path
import aitrain
from aitrain.cli import main
from aitrain.launch.clusters import names
from aitrain.launch.ready import READY, ready_script
from aitrain.launch.render import TEMPLATES
same = all((TEMPLATES / f"{name}.sbatch").read_text() == ready_script(name) for name in READY)
code = main(sys.argv[1:])
print("\\n" + json.dumps([aitrain.__file__, names({"HOME": "/nobody"}), same, code]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment of its own, with the wheel in it; what aitrain needs is lent from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    # a copy, because setuptools writes build/ and *.egg-info beside what it builds
    source = folder / "source"
    stale = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("aitrain", "configs", "recipes", "launch"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=stale)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(source)]
    subprocess.run(built, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("aitrain-*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    target = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", target, str(wheel)], check=True)
    # a line in a .pth file lends packages, but not the editable aitrain of this environment, which is a .pth itself
    (Path(target) / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_a_wheel_renders(installed: Path, tmp_path: Path) -> None:
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(record) + "\n")
    words = ["submit", "sft_lora", "--cluster", "local_slurm", "--dry-run", "model.path=asset:tiny-llama"]
    words += ["data.path=chats.jsonl", "data.sequence_tokens=64"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [installed, "-c", LOOK, *words], capture_output=True, text=True, cwd=tmp_path, env=clean, check=False
    )
    assert done.returncode == 0, done.stderr
    place, profiles, same, code = json.loads(done.stdout.splitlines()[-1])
    assert Path(place).is_relative_to(installed.parents[1]), "the wheel's own code, not the source tree's"
    assert profiles == PROFILES and same and code == 0
    assert done.stdout.startswith("#!/bin/bash\n") and f"PYTHON={installed}" in done.stdout


def test_a_wheel_carries_every_asset_whole(installed: Path) -> None:
    code = "import aitrain, pathlib; print(pathlib.Path(aitrain.__file__).parent)"
    told = subprocess.run([installed, "-c", code], capture_output=True, text=True, cwd="/").stdout.strip()

    def files(folder: Path) -> dict[str, int]:
        found = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}

    assert files(Path(told) / "_recipes") == files(ROOT / "recipes")
