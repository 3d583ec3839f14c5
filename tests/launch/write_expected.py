"""Write `expected/` anew after a deliberate change: `python tests/launch/write_expected.py`; read the diff then."""

import sys
from pathlib import Path

from aitrain.launch.render import render

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from launch.specimens import all_jobs

    for name, job in all_jobs().items():
        (Path(__file__).parent / "expected" / f"{name}.sbatch").write_text(render(job), encoding="utf-8")
