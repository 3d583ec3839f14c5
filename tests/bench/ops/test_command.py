"""`bench ops` from its words to its files, and every part of it on a CPU."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from aitrain.bench.ops import command
from aitrain.bench.ops.case import Case, own_inputs
from aitrain.bench.ops.command import PARTS, main
from aitrain.bench.ops.measure import run_case
from aitrain.errors import AitrainError

SMALLER = {"linear_loss": ((24, 16, 40),), "cross_entropy": ((12, 50),), "rope": ((10, 2, 1, 8),)}
SMALLER |= {"lora": ((7, 16, 16, 8, 24, 4),)}
OPS = {"glu": ("aitrain.ops.glu",), "rope": ("aitrain.ops.rope",)}
SMALLER_THAN_THAT = ((10, 24),)
DAILY = ("norms",)
"""Parts of every day; the ops themselves have tests of their own."""


def part(name: str) -> ModuleType:
    return importlib.import_module(f"aitrain.bench.ops.parts.{name}")


def small_cases(name: str, monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    if name != "adamw":
        monkeypatch.setattr(part(name), "SMALL_SHAPES", SMALLER.get(name, SMALLER_THAN_THAT))
    return list(part(name).cases(True))


@pytest.mark.parametrize(
    "name", [part if part in DAILY else pytest.param(part, marks=pytest.mark.slow) for part in PARTS]
)
def test_ours_and_the_plain_way_agree_with_the_exact_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for op in OPS.get(name, ()):
        if importlib.util.find_spec(op) is None or importlib.util.find_spec(f"{op}.op") is None:
            pytest.skip(f"{op} is not there yet")
    torch.manual_seed(0)
    bench = command.Bench(torch.device("cpu"), command.measure(torch.device("cpu")), lambda _: None, 0.0)
    for case in small_cases(name, monkeypatch):
        known = [provider for provider in case.providers if provider.package is None and not provider.compiles]
        rows = run_case(replace(case, providers=known), bench)
        assert {row.verdict for row in rows if row.verdict != "absent"} == {"right"}, [row.note for row in rows]
        timed = [(row.mode, row.provider) for row in rows if row.verdict == "right"]
        assert {mode for mode, who in timed if who == "ours"} == set(case.work)
        assert len({who for _, who in timed}) >= 2


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("small", [True, False])
def test_cases_name_inputs_that_exist(name: str, small: bool) -> None:
    cases = list(part(name).cases(small))
    assert len({(case.op, case.shape) for case in cases}) == len(cases)
    for case in cases:
        inputs = case.inputs(torch.device("meta"))
        assert case.providers[0].name == "ours"
        assert {*case.leaves, *case.upstream} <= set(inputs)
        assert all(set(provider.overwrites) <= set(inputs) for provider in case.providers)
        assert len({provider.name for provider in case.providers}) == len(case.providers)
        assert set(case.work) <= {"forward", "backward", "both", "step"}
        assert all(work.bytes or work.flops for work in case.work.values())
        own_inputs(case, inputs, ())


def test_the_real_models_have_the_sizes_they_are_known_for() -> None:
    adamw = part("adamw")
    assert len(adamw.llama_1b()) == 146
    assert sum(torch.Size(shape).numel() for shape in adamw.llama_1b()) == 1_235_814_400  # Llama 3.2 1B's card
    assert len(adamw.many_small()) == 2000


def test_it_runs_with_little_beside_torch(tmp_path: Path) -> None:
    code = """
import sys
from aitrain.bench.ops.command import main
code = main(["ceilings", "--minutes", "1", "--out", sys.argv[1]])
import aitrain.bench.ops.parts.norms, aitrain.bench.ops.parts.linear_loss, aitrain.bench.ops.parts.adamw
for op in ("linear_loss", "cross_entropy", "rms_norm", "layer_norm"):
    __import__(f"aitrain.ops.{op}.op")
import aitrain.optim.fused_adamw
heavy = ("hydra", "omegaconf", "lightning", "deepspeed", "transformers", "peft", "accelerate", "datasets")
print("loaded:", *[name for name in heavy if name in sys.modules])
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".md"]
    assert "copy of memory" in next(tmp_path.glob("*.md")).read_text()


def test_files_hold_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["norms", "--providers", "eager", "--seconds", "0", "--minutes", "2", "--out", str(tmp_path)]
    assert main(words) == 0
    (path,) = tmp_path.glob("ops-cpu-*-norms.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert {row["provider"] for row in rows} == {"ours", "eager"}
    assert {row["op"] for row in rows} == {"rms_norm with residual", "rms_norm", "layer_norm"}
    assert "Quack left out in norms: not in --providers" in path.with_suffix(".md").read_text()
    assert "ours" in capsys.readouterr().out


def stand_in(monkeypatch: pytest.MonkeyPatch, seconds: float, count: int) -> None:
    """Put a part with slow cases in the place of all parts."""
    template = next(iter(part("norms").cases(True)))

    def slowly(device: torch.device) -> dict[str, torch.Tensor]:
        time.sleep(seconds)
        return template.inputs(device)

    cases = [
        replace(template, shape=f"case {n}", inputs=slowly, providers=template.providers[:1]) for n in range(count)
    ]
    monkeypatch.setattr(command, "PARTS", ("slow",))
    module = SimpleNamespace(cases=lambda small: iter(cases))
    monkeypatch.setattr(command, "importlib", SimpleNamespace(import_module=lambda name: module))
    monkeypatch.setattr(command, "SLACK_S", 0.0)


@pytest.mark.slow
def test_what_does_not_fit_into_the_minutes_is_skipped_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, seconds=1.0, count=20)
    assert main(["--minutes", "0.2", "--seconds", "0"]) == 0
    said = capsys.readouterr().out
    assert (
        "case 0 forward" in said
        and "not measured, because the time was up" in said
        and "case 19" in said.splitlines()[-1]
    )


@pytest.mark.slow
def test_a_case_that_hangs_is_broken_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(monkeypatch, seconds=60.0, count=1)
    # the ceilings are measured within the same minutes, on a busy machine for several seconds
    assert main(["--minutes", "0.2", "--seconds", "0"]) == 0
    assert "stopped after 0.2 minutes" in capsys.readouterr().out


def test_a_wrong_op_of_ours_is_exit_code_4(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, seconds=0.0, count=1)
    norms = part("norms")
    monkeypatch.setattr(norms, "_our_rms_norm", lambda residual: norms._torch_rms_norm(residual))
    wrong = next(iter(norms.cases(True)))
    flawed = replace(wrong, exact=lambda inputs: tuple(value * 1.01 for value in wrong.exact(inputs)))
    module = SimpleNamespace(cases=lambda small: iter([replace(flawed, providers=wrong.providers[:1])]))
    monkeypatch.setattr(command, "importlib", SimpleNamespace(import_module=lambda name: module))
    assert main(["--minutes", "1", "--seconds", "0"]) == 4


@pytest.mark.parametrize("words", [["norm"], ["norms", "--device", "cuda"]])
def test_words_that_cannot_be_used_are_refused(words: list[str]) -> None:
    if torch.cuda.is_available() and "cuda" in words:
        pytest.skip("there is a GPU")
    with pytest.raises(AitrainError, match="write"):
        main(words)
