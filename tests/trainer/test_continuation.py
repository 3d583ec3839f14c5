"""A resumed run: as long as it was to be, at the rate it was to have, and silent where nothing is left to do."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from aitrain.checkpoint import store
from aitrain.dist.group import Group
from aitrain.dist.processes import run_ranks
from aitrain.dist.ranks import Ranks
from aitrain.errors import DataError, RecipeError
from aitrain.trainer.continuation import refuse_changed_rate
from aitrain.trainer.progress import Progress
from aitrain.trainer.resume_options import ResumeOptions
from aitrain.trainer.run_directory import RunDirectory
from aitrain.trainer.start import resume, train

from .conftest import Compose, Ended, run


def events(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]


def losses(path: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_fault_of_the_first_rank_is_raised() -> None:
    def find() -> None:
        raise DataError("line 3")

    with pytest.raises(DataError, match="line 3"):
        Group(Ranks(), "cpu").by_first(find)


@pytest.mark.parametrize(
    ("schedule", "before", "steps", "refused"),
    [
        ("cosine", 100, 200, True),
        ("cosine", 1000, 1001, False),  # less than one per cent
        ("linear", 100, 60, True),
        ("constant", 1000, 2000, False),
        ("wsd", 1000, 2000, False),  # still on the level part
        ("cosine", None, 200, False),  # a checkpoint of before this was kept
        ("cosine", 100, 100, False),
    ],
)
def test_a_jump_of_the_rate_needs_a_word(
    small: Compose, schedule: str, before: int | None, steps: int, refused: bool
) -> None:
    config = small(f"schedule={schedule}", "schedule.warmup_steps=10")
    progress = Progress(step=50, total_steps=before)
    if refused:
        with pytest.raises(
            RecipeError, match=r"gives step 51 the learning rate [\d.e-]+ instead of [\d.e-]+: .*--changed-rate"
        ):
            refuse_changed_rate(config, progress, steps, ResumeOptions())
    else:
        refuse_changed_rate(config, progress, steps, ResumeOptions())
    refuse_changed_rate(config, progress, steps, ResumeOptions(changed_rate=True))


def test_a_finished_run_made_longer_ends_as_a_longer_run(small: Compose, tmp_path: Path) -> None:
    """Cosine with a warm-up: told, and then done; the export is that of the last step."""
    words = ["schedule=cosine", "schedule.warmup_steps=1", "trainer.max_steps=3", "export.dtype=fp32"]
    path = run(small(f"run.dir={tmp_path}/run", *words)).directory.path
    first = AutoModelForCausalLM.from_pretrained(path / "export/model").state_dict()
    before = events(path)
    with pytest.raises(RecipeError, match="with 5 steps instead of 3"):
        resume(path, ["trainer.max_steps=5"])
    assert events(path) == before, "the run is as it was"
    assert resume(path, ["trainer.max_steps=5"], ResumeOptions(changed_rate=True)) == 0
    assert [e["step"] for e in events(path) if e["event"] in ("exported", "finished")] == [3, 3, 5, 5]
    assert len(losses(path)) == 5 and sorted(p.name for p in path.iterdir() if "export" in p.name) == ["export"]
    last = AutoModelForCausalLM.from_pretrained(path / "export/model").state_dict()
    assert any(not torch.equal(first[name], last[name]) for name in first)
    weights = store.choose(path / "checkpoints", "newest")
    assert all(torch.equal(last[name], weights.read("weights", name)) for name in weights.names("weights"))


def test_going_back_is_refused_before_anything_is_renamed(small: Compose, tmp_path: Path) -> None:
    words = ["schedule=cosine", "checkpoint.every_steps=1", "checkpoint.keep=9", "export.at_end=false"]
    path = run(small(f"run.dir={tmp_path}/run", *words)).directory.path
    before = sorted(entry.name for entry in (path / "checkpoints").iterdir())
    with pytest.raises(RecipeError, match="--changed-rate"):
        resume(path, ["trainer.max_steps=9"], ResumeOptions(checkpoint="2"))
    assert sorted(entry.name for entry in (path / "checkpoints").iterdir()) == before


def test_a_stopped_run_that_is_made_shorter_than_it_is_ends(small: Compose, tmp_path: Path) -> None:
    words = ["schedule=constant", "trainer.max_steps=4", "checkpoint.every_steps=3"]
    path = run(small(f"run.dir={tmp_path}/run", *words)).directory.path
    text = (path / "events.jsonl").read_text()
    (path / "events.jsonl").write_text("".join(line for line in text.splitlines(True) if "finished" not in line))
    shutil.rmtree(path / "checkpoints/step-00000004")
    assert resume(path, ["trainer.max_steps=2"]) == 0
    assert events(path)[-1]["event"] == "finished" and events(path)[-1]["step"] == 3


def test_a_longer_run_of_constant_rate_is_the_same_run(small: Compose, tmp_path: Path) -> None:
    words = ["schedule=constant", "schedule.warmup_steps=1", "adapter.dropout=0.2"]
    whole = run(small(f"run.dir={tmp_path}/whole", "trainer.max_steps=5", *words, recipe="sft_lora")).directory.path
    path = run(small(f"run.dir={tmp_path}/run", "trainer.max_steps=3", *words, recipe="sft_lora")).directory.path
    assert resume(path, ["trainer.max_steps=5"]) == 0
    assert losses(path) == losses(whole)


def test_what_is_reached_first_ends_the_run(small: Compose, tmp_path: Path) -> None:
    """12 samples in steps of 4: an epoch has 3 steps."""
    for steps, epochs, done in ((2, 1, 2), (8, 1, 3), (2, 0.5, 2)):
        words = [f"trainer.max_steps={steps}", f"trainer.max_epochs={epochs}", "export.at_end=false"]
        path = run(small(f"run.dir={tmp_path}/{steps}-{epochs}", *words)).directory.path
        assert len(losses(path)) == done


@pytest.fixture
def stopped_early(small: Compose, tmp_path: Path) -> Ended:
    words = ["optim.lr=1e-12", "evaluate.every_steps=1", "evaluate.patience=2", "trainer.max_steps=9"]
    return run(small(f"run.dir={tmp_path}/run", *words, "schedule=constant", "export.at_end=false"))


def test_an_early_stopped_run_says_so_and_does_nothing(stopped_early: Ended, capfd: pytest.CaptureFixture[str]) -> None:
    path = stopped_early.directory.path
    done, before = len(losses(path)), events(path)
    assert done < 9 and before[-1]["event"] == "finished"
    assert resume(path, []) == 0
    assert f"stopped early after step {done}" in capfd.readouterr().err
    assert events(path) == before and len(losses(path)) == done
    assert resume(path, ["evaluate.patience=null"]) == 0
    assert len(losses(path)) == 9


def test_a_new_run_may_start_from_an_old_one(small: Compose, tmp_path: Path) -> None:
    """Any key may change then; the weights are those of the old run's export."""
    old = run(small(f"run.dir={tmp_path}/old")).directory.path
    config = small(f"run.dir={tmp_path}/new", f"model.path={old}", "optim=sgd", "optim.lr=1e-9", "seed=3")
    new = run(config).directory.path
    kept = AutoModelForCausalLM.from_pretrained(old / "export/model").state_dict()
    found = AutoModelForCausalLM.from_pretrained(new / "export/model").state_dict()
    assert all(torch.allclose(kept[name], found[name], atol=1e-6) for name in kept)


def test_a_run_without_an_export_says_how_to_make_one(small: Compose, tmp_path: Path) -> None:
    old = run(small(f"run.dir={tmp_path}/old", "export.at_end=false")).directory.path
    with pytest.raises(
        RecipeError, match=rf"{old} is a run without an exported model: .*aitrain export {old} --to DIR"
    ):
        train("sft_full", [f"model.path={old}", "data.path=asset:verses-en-nl/train.jsonl"])


def test_a_run_goes_on_from_any_directory(verses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(verses)
    words = ["model.path=asset:tiny-llama", "data.path=train.jsonl", "data.validation_path=validation.jsonl"]
    words += ["data.sequence_tokens=256", "trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.max_steps=2"]
    words += [
        "trainer.global_batch_samples=4",
        "schedule=constant",
        f"run.dir={tmp_path}/run",
        "checkpoint.path=kept",
    ]
    assert train("sft_full", words) == 0
    monkeypatch.chdir("/")
    assert resume(tmp_path / "run", ["trainer.max_steps=3"]) == 0
    assert len(losses(tmp_path / "run")) == 3 and (verses / "kept/step-00000003").is_dir()


def test_evaluations_do_not_touch_what_dropout_draws(small: Compose, tmp_path: Path) -> None:
    words = ["schedule=constant", "adapter.dropout=0.2", "export.at_end=false", "evaluate.max_new_tokens=3"]
    often = ["evaluate.every_steps=1", 'evaluate.prompts=["light"]']
    one = run(small(f"run.dir={tmp_path}/one", *words, recipe="sft_lora")).directory.path
    other = run(small(f"run.dir={tmp_path}/other", *words, *often, recipe="sft_lora")).directory.path
    assert losses(one) == losses(other)


BLIND = """
import os, sys
from pathlib import Path
from aitrain.checkpoint import store
from aitrain.dist.group import Group
from aitrain.dist.processes import run_ranks
from aitrain.dist.ranks import detect
from aitrain.tasks import token_data
from aitrain.tasks.causal_lm import CausalLM
from aitrain.trainer import continuation
from aitrain.trainer.fit import fit
from aitrain.trainer.run_directory import RunDirectory

ranks = detect()
def looked(*_, **__):
    os._exit(9)
if not ranks.is_first:  # as on a node that sees an old state of the shared file system
    store.scan = store.choose = store.committed = looked
    RunDirectory.config = RunDirectory.facts = RunDirectory.last_of = looked
    CausalLM.facts = continuation.tidy = token_data.prepare = token_data.remove_leftovers = looked
group = Group(ranks, "cpu")
code = fit(RunDirectory(Path(sys.argv[1])), ranks, group)
group.close()
sys.exit(code)
"""


def test_rank_0_decides_and_tells_the_others(small: Compose, tmp_path: Path) -> None:
    """Rank 1 looks at neither checkpoints nor run.yaml nor the data files, at the start and when it goes on."""
    words = ["trainer.devices=2", "schedule=constant", "export.at_end=false", "checkpoint.every_steps=1"]
    directory = RunDirectory.create(small(f"run.dir={tmp_path}/run", "trainer.max_steps=2", *words))
    for steps in (2, 3):
        text = directory.config_file.read_text().replace("max_steps: 2", f"max_steps: {steps}")
        directory.config_file.write_text(text)
        assert run_ranks([sys.executable, "-c", BLIND, str(directory.path)], 2) == 0
    assert len(losses(directory.path)) == 3
