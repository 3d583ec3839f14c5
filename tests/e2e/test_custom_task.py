"""The documented task of one's own, in a folder outside the tree: on two ranks, resumed, refused when changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def say(words: str, place: Path, code: int = 0) -> str:
    """Run a line of a shell with aitrain on the path; return all that it says."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "AITRAIN_CACHE": str(place / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-e", "-c", words], cwd=place, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def heat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Do what the page says, in order; return the folder and all that was said."""
    outside = tmp_path_factory.mktemp("own")
    said = ""
    for kind, block in re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs/add-a-task.md").read_text(), re.DOTALL):
        if kind == "bash":
            place = outside / "heat"
            said += say(block, place if place.is_dir() else outside)
        else:
            (outside / "heat" / {"python": "my_task.py", "yaml": "heat.yaml"}[kind]).write_text(block)
    return outside / "heat", said


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_page_trains_on_one_rank_and_on_two_alike(heat: tuple[Path, str]) -> None:
    place, said = heat
    one, two = records(place / "runs/one"), records(place / "runs/two")
    assert len(one) == 60 and [row["rows"] for row in one] == [row["rows"] for row in two]
    for mine, other in zip(one, two, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=2e-4)
    assert one[-1]["val_r2"] > 0.95 and one[-1]["val_r2"] == pytest.approx(two[-1]["val_r2"], abs=1e-3)
    assert "custom file=my_task.py class=PredictColumn options={target: heat_mwh}" in said
    assert "houses.csv: 320 rows to train on, 80 held out" in said and "held-out r2  before" in said
    assert (place / "runs/one/export/model/model.safetensors").is_file()


def test_it_resumes(heat: tuple[Path, str]) -> None:
    place, said = heat
    found = records(place / "runs/short")
    assert [row["step"] for row in found] == list(range(1, 61)) and "resumed from runs/short" in said
    whole = ["run.dir=runs/whole", "schedule=constant", "schedule.warmup_steps=1"]  # 3 % of 30 steps, as it began
    say(f"aitrain train heat.yaml {' '.join(whole)}", place)
    assert [row["loss"] for row in records(place / "runs/whole")] == [row["loss"] for row in found], "bit for bit"
    measured = json.loads((place / "runs/short/events.jsonl").read_text().splitlines()[-1])
    assert measured["event"] == "evaluated" and measured["val_r2"] == pytest.approx(found[-1]["val_r2"], rel=1e-5)


@pytest.mark.slow
def test_more_of_ones_own(heat: tuple[Path, str]) -> None:
    place, _ = heat
    (place / "more.py").write_text(MORE)
    (place / "options/optim").mkdir(parents=True)
    (place / "options/optim/gentle.yaml").write_text("defaults: [sgd, _self_]\nlr: 0.5\nmomentum: 0.5\n")
    own = "optim=custom optim.file=more.py optim.class=Signs optim.options.floor=0.5 optim.lr=0.01"
    own += " schedule=custom schedule.file=more.py schedule.class=Halves trainer.callbacks=[more.py:Counter]"
    say(f"aitrain train heat.yaml {own} run.dir=runs/own trainer.max_steps=6 trainer.profile_steps=[2,3]", place)
    assert [row["lr"] for row in records(place / "runs/own")] == [0.01 / 2**step for step in range(6)]
    assert (place / "counted.txt").read_text() == "6"
    (trace,) = (place / "runs/own/profile").iterdir()
    assert trace.name == "rank-0-steps-2-3.json.gz" and trace.stat().st_size > 10_000
    said = say("aitrain check heat.yaml --config-dir options optim=gentle --no-data", place)
    assert "optimizer    sgd lr=0.5 weight_decay=0 max_grad_norm=1 momentum=0.5" in said
    facts = (place / "runs/own/run.yaml").read_text()
    assert "my_task.py: " in facts and "more.py: " in facts, "their checksums"


MORE = '''
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch


class Signs(torch.optim.Optimizer):
    """Steps by the sign of the gradient."""

    @dataclass
    class Options:
        floor: float = 0.0

    def __init__(self, params, lr, floor):
        super().__init__(params, {"lr": lr, "floor": floor})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad.sign() * (1 - group["floor"])


class Halves:
    def __call__(self, step, total_steps):
        return 0.5**step


class Counter(pl.Callback):
    steps = 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps += 1
        Path("counted.txt").write_text(str(self.steps))
'''

REFUSED = {
    "task.options.hiden=3": "task.options.hiden is not a key of PredictColumn: did you mean task.options.hidden?",
    "task.options.hidden=wide": "task.options.hidden=wide is not a whole number",
    "task.class=Nobody": "task.class=Nobody is not a class in my_task.py: it has Rows, Account, PredictColumn",
    "task.class=Rows": "task.class=Rows is not a task: inherit from aitrain.tasks.task.Task",
    "task.file=none.py": "task.file=none.py does not exist",
    "task.file=broken.py": "broken.py:3: SyntaxError",
    "task.file=heat.yaml": "task.file=heat.yaml is not a Python file",
    "trainer.callbacks=[my_task.py]": "my_task.py is not FILE.py:CLASS",
    "trainer.callbacks=[my_task.py:Rows] trainer.max_steps=1": "my_task.py:Rows is not a callback",
    "trainer.profile_steps=[3]": "must be the first and the last step",
    "optim=gentle": "optim=gentle is not an option of optim",
    "optim=gentle --config-dir nowhere": "nowhere is not a folder",
    "optim=custom optim.file=my_task.py optim.class=Rows": "optim.class=Rows is not an optimizer",
    "schedule=custom schedule.file=my_task.py schedule.class=Rows": "schedule.class=Rows cannot be called",
    "data=custom data.file=my_task.py data.class=Rows": "data.class=Rows has no method read(path)",
    "optim=custom optim.file=more.py optim.class=Signs strategy=fsdp": "optim.class=Signs would get sharded weights",
}


def test_what_is_wrong_is_one_line_each(heat: tuple[Path, str]) -> None:
    """In one process, because each start of Python costs seconds."""
    place, _ = heat
    (place / "broken.py").write_text("import os\n\ndef f(:\n")
    (place / "more.py").write_text(MORE)
    code = f"""
import contextlib, io, json, sys
from aitrain.cli import main
said = {{}}
for words in {list(REFUSED)!r}:
    err = io.StringIO()
    import os
    os.environ.pop("AITRAIN_CONFIG_DIR", None)
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        code = main(["train", "heat.yaml", "run.dir=runs/refused", *words.split()])
    said[words] = [code, err.getvalue()]
print(json.dumps(said))
"""
    (place / "ask.py").write_text(code)
    said = json.loads(say(f"{sys.executable} ask.py", place).splitlines()[-1])
    for words, expected in REFUSED.items():
        code_, text = said[words]
        assert code_ == 2 and expected in text and "Traceback" not in text, (words, code_, text)
    assert not (place / "runs/refused").exists()


@pytest.mark.slow
def test_changed_code_is_not_continued_in_silence(heat: tuple[Path, str]) -> None:
    place, _ = heat
    say("aitrain train heat.yaml run.dir=runs/changed trainer.max_steps=2 schedule=constant", place)
    text = (place / "my_task.py").read_text()
    (place / "my_task.py").write_text(text + "# changed\n")
    try:
        said = say("aitrain resume runs/changed trainer.max_steps=3", place, code=2)
        assert "my_task.py: your code has changed since the run started" in said and "--changed-inputs" in said
        say("aitrain resume runs/changed trainer.max_steps=3 --changed-inputs", place)
    finally:
        (place / "my_task.py").write_text(text)
