"""Stopped runs go on as if nothing had been: signals, kills, other numbers of ranks, damage, and fixed keys."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny import CONTEXT_TOKENS

from aitrain import cli
from aitrain.checkpoint import store

STEPS = 30
STOP_AFTER = 3  # a step from which on a stopped run is far from its end
RANKS = {
    # name -> recipe, overrides; dropout makes the random generators part of what a checkpoint must hold
    "one": ["sft_lora", "data.validation_samples=null", "adapter.dropout=0.1", "trainer.devices=1"],
    "ddp": ["sft_full", "data.validation_samples=null", "trainer.devices=2", "strategy=ddp"],
    "zero2": ["sft_full", "data.validation_samples=null", "trainer.devices=2", "strategy=deepspeed_zero2"],
}


class Runs:
    """Starts runs in a folder of their own and reads what they wrote."""

    def __init__(self, folder: Path, model: Path, data: Path) -> None:
        self.folder = folder
        self.common = [
            f"model.path={model}",
            f"data.path={data}",
            f"data.sequence_tokens={CONTEXT_TOKENS}",
            "trainer.accelerator=cpu",
            "trainer.precision=fp32",
            "trainer.max_epochs=null",
            "trainer.global_batch_samples=4",
            "trainer.micro_batch_samples=1",
            "optim.lr=1e-3",
            "optim.max_grad_norm=1",
            "schedule=cosine",
            "schedule.warmup_steps=3",
            "export.at_end=false",
        ]

    def words(self, kind: str, name: str, *more: str) -> list[str]:
        """Return the words of a training of one of the kinds of `RANKS`."""
        recipe, *words = RANKS[kind]
        return ["train", recipe, *self.common, f"trainer.max_steps={STEPS}", *words, f"run.dir={self[name]}", *more]

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def start(self, words: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command without waiting for it."""
        command = [sys.executable, "-m", "aitrain", *words]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def end(self, words: Sequence[str]) -> tuple[int, str]:
        """Run a command to its end; return its exit code and what it said."""
        process = self.start(words)
        out, err = process.communicate()
        theirs = "\n".join(
            line for line in err.splitlines() if "which is too short to learn much" not in line
        )  # our own warning
        assert not out and "arning" not in theirs and "WARN" not in theirs, "libraries speak in logs/"
        return process.returncode, err

    def after(self, process: subprocess.Popen[str], name: str, step: int = STOP_AFTER) -> None:
        """Wait until a run has done so many steps."""
        while len(records(self[name])) < step:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)


def records(run: Path) -> list[dict[str, float]]:
    """Return the whole lines of `metrics.jsonl`."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def events(run: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]


def losses(run: Path, upto: int | None = None) -> list[float]:
    """Return the losses of steps 1, 2, ... and see that each step stands there once."""
    found = records(run)
    assert [record["step"] for record in found] == list(range(1, len(found) + 1))
    return [record["loss"] for record in found][:upto]


def checkpoints(run: Path) -> list[int]:
    """Return the steps of the checkpoints and see that nothing half-written stands beside them."""
    names = [path.name for path in (run / "checkpoints").iterdir()]
    assert all(name.startswith("step-") for name in names), names
    return sorted(int(name.removeprefix("step-")) for name in names)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_data: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), tiny_model, tiny_data)


@pytest.fixture(scope="session")
def one_rank(runs: Runs) -> list[float]:
    """Losses of one rank that nobody disturbed, in the process of the tests; checkpoints on the way."""
    assert cli.main(runs.words("one", "whole", "checkpoint.every_steps=10", "checkpoint.keep=3")) == 0
    return losses(runs["whole"])


@pytest.fixture(scope="session")
def full(runs: Runs) -> list[float]:
    """The same for all weights, in a process of its own, as ranks do it."""
    words = [word for word in runs.words("ddp", "full") if not word.startswith("trainer.devices")]
    code, err = runs.end([*words, "trainer.devices=1"])
    assert code == 0, err
    return losses(runs["full"])


def stopped(runs: Runs, kind: str, name: str, number: signal.Signals) -> int:
    """Start a run, stop it with a signal, check how it ended; return the steps it did."""
    process = runs.start(runs.words(kind, name))
    runs.after(process, name)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 75, err
    done = len(records(runs[name]))
    assert STOP_AFTER <= done < STEPS
    assert checkpoints(runs[name]) == [done]
    last = err.strip().splitlines()[-1]
    assert f"aitrain resume {runs[name]}" in last and number.name in last and f"step {done}" in last
    assert "Traceback" not in err
    assert events(runs[name])[-2:] == ["stopped", "waiting"]
    return done


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_one_rank_goes_on_bit_for_bit(runs: Runs, one_rank: list[float], number: signal.Signals) -> None:
    stopped(runs, "one", number.name, number)
    assert cli.main(["resume", str(runs[number.name])]) == 0
    assert losses(runs[number.name]) == one_rank
    assert "resumed" in events(runs[number.name]) and events(runs[number.name])[-1] == "finished"


def test_one_command_line_starts_continues_and_finishes(runs: Runs, one_rank: list[float]) -> None:
    words = [*runs.words("one", "requeued"), "--or-resume"]
    process = runs.start(words)
    runs.after(process, "requeued")
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate()
    assert process.returncode == 75, err
    assert runs.end(words)[0] == 0
    assert losses(runs["requeued"]) == one_rank
    told = events(runs["requeued"])
    assert told[-1] == "finished" and told.count("started") == told.count("resumed") == 1
    # once more, as when a node is lost after the end: nothing is done again, and nothing is written
    code, err = runs.end(words)
    assert code == 0 and "is already finished: nothing left to do" in err
    assert events(runs["requeued"]) == told


@pytest.mark.slow  # every job on Slurm does this too
def test_two_ranks_continue_from_the_frozen_file(runs: Runs, full: list[float]) -> None:
    """What a submitted job runs: the recipe is frozen when it is submitted, and the command names only that file."""
    from aitrain.recipe import compose, freeze

    run = runs["submitted"]
    (run / "logs").mkdir(parents=True)
    _, recipe, *words = runs.words("ddp", "submitted")
    freeze(compose(recipe, words), run / "run.yaml")
    line = ["train", "--or-resume", str(run / "run.yaml")]
    process = runs.start(line)
    runs.after(process, "submitted")
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate()
    assert process.returncode == 75, err
    code, err = runs.end(line)
    assert code == 0, err
    assert losses(run) == pytest.approx(full, rel=1e-6)
    assert runs.end(line)[0] == 0, "finished: done"


def test_a_run_killed_between_its_last_step_and_its_end_is_finished(runs: Runs, one_rank: list[float]) -> None:
    """Its checkpoint is whole and all steps are done, so only the export is left; no step is done again."""
    shutil.copytree(runs["whole"], runs["cut"])
    lines = (runs["cut"] / "events.jsonl").read_text().splitlines(keepends=True)
    (runs["cut"] / "events.jsonl").write_text("".join(line for line in lines if '"finished"' not in line))
    text = (runs["cut"] / "run.yaml").read_text().replace(str(runs["whole"]), str(runs["cut"]))
    (runs["cut"] / "run.yaml").write_text(text.replace("at_end: false", "at_end: true"))
    before = losses(runs["cut"])
    code, err = runs.end(["train", "--or-resume", str(runs["cut"] / "run.yaml")])
    assert code == 0, err
    assert "completing the interrupted last phase of" in err and (runs["cut"] / "export/model/config.json").is_file()
    assert losses(runs["cut"]) == before == one_rank and events(runs["cut"])[-1] == "finished"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("optim.lr=2e-3", "optim.lr=0.002, but the run in {run} has 0.001: give the same, or choose a new run.dir"),
        ("seed=1", "seed=1, but the run in {run} has 0"),
        ("optim=sgd", "optim=sgd, but the run in {run} has adamw"),
    ],
)
def test_or_resume_never_guesses(runs: Runs, one_rank: list[float], change: str, says: str) -> None:
    before = (runs["whole"] / "run.yaml").read_bytes(), events(runs["whole"])
    code, err = runs.end([*runs.words("one", "whole", change), "--or-resume"])
    assert code == 2 and "Traceback" not in err
    assert any(says.format(run=runs["whole"]) in line for line in err.splitlines()), err
    assert ((runs["whole"] / "run.yaml").read_bytes(), events(runs["whole"])) == before


def test_two_ranks_go_on(runs: Runs, full: list[float]) -> None:
    stopped(runs, "ddp", "ddp", signal.SIGTERM)
    code, err = runs.end(["resume", str(runs["ddp"])])
    assert code == 0, err
    assert losses(runs["ddp"]) == pytest.approx(full, rel=1e-6)


def test_zero_goes_on_with_another_number_of_ranks(
    runs: Runs, full: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    stopped(runs, "zero2", "zero2", signal.SIGINT)
    assert cli.main(["resume", str(runs["zero2"]), "strategy=dpp"]) == 2
    assert "strategy=dpp is not an option of strategy" in capfd.readouterr().err
    code, err = runs.end(["resume", str(runs["zero2"]), "trainer.devices=1", "strategy=ddp"])
    assert code == 0, err
    assert losses(runs["zero2"]) == pytest.approx(full, rel=1e-6)


@pytest.fixture
def whole(runs: Runs, one_rank: list[float], tmp_path: Path) -> Path:
    """A copy of the undisturbed run, with checkpoints of steps 10, 20 and 30."""
    return Path(shutil.copytree(runs["whole"], tmp_path / "run"))


def test_what_is_done_says_so(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (whole / "events.jsonl").read_text()
    assert cli.main(["resume", str(whole)]) == 2
    said = capfd.readouterr().err
    assert f"Training is already complete ({STEPS} of {STEPS} steps)" in said and f"max_steps={2 * STEPS}" in said
    assert (whole / "events.jsonl").read_text() == before, "a finished run stays finished"


def test_a_finished_run_goes_on_when_it_is_made_longer(whole: Path, one_rank: list[float]) -> None:
    assert cli.main(["resume", str(whole), f"trainer.max_steps={STEPS + 2}", "--changed-rate"]) == 0
    assert losses(whole, STEPS) == one_rank and len(losses(whole)) == STEPS + 2
    assert checkpoints(whole)[-1] == STEPS + 2


def test_a_run_that_was_killed_goes_on_from_its_checkpoint(runs: Runs, one_rank: list[float]) -> None:
    process = runs.start(runs.words("one", "killed", "checkpoint.every_steps=5"))
    runs.after(process, "killed", 7)
    process.kill()
    process.communicate()
    before = events(runs["killed"])
    assert before[-1] == "checkpoint" and "finished" not in before
    assert cli.main(["resume", str(runs["killed"])]) == 0
    assert losses(runs["killed"]) == one_rank


def test_a_killed_run_forgets_half_a_line(whole: Path, one_rank: list[float]) -> None:
    """A crash may cut the last line of the log; steps behind the checkpoint are done again and stand there once."""
    shutil.rmtree(whole / "checkpoints" / f"step-{STEPS:08d}")
    metrics = whole / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-40])
    assert cli.main(["resume", str(whole)]) == 0
    assert losses(whole) == one_rank


@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "manifest"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(
    whole: Path, one_rank: list[float], damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    newest = whole / "checkpoints" / f"step-{STEPS:08d}"
    file = newest / ("manifest.json" if damage == "manifest" else "weights-00001.safetensors")
    content = file.read_bytes()
    if damage == "bit":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-10])
    assert cli.main(["resume", str(whole)]) == 0
    err = capfd.readouterr().err
    assert f"{file} " in err and "skipped" in err and "Traceback" not in err
    assert "resumed from" in err and "step-00000020 (step 20 of" in err
    assert losses(whole) == one_rank
    left = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert f"damaged-step-{STEPS:08d}" in left, "what may still be of use is not deleted"


def test_one_may_go_back_to_an_older_checkpoint(whole: Path, one_rank: list[float]) -> None:
    assert cli.main(["resume", str(whole), "--checkpoint", "10"]) == 0
    assert losses(whole) == one_rank and checkpoints_and_others(whole)[0][-1] == STEPS
    assert checkpoints_and_others(whole)[1] == ["superseded-step-00000020", "superseded-step-00000030"]
    assert cli.main(["resume", str(whole), "--checkpoint", "15"]) == 2


def checkpoints_and_others(run: Path) -> tuple[list[int], list[str]]:
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    steps = [int(name.removeprefix("step-")) for name in names if name.startswith("step-")]
    return steps, [name for name in names if not name.startswith("step-")]


def test_what_a_killed_save_left_goes_with_a_word(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    left = whole / "checkpoints" / ".step-00000031.node1.4026531836.7.part"
    left.mkdir()
    (left / "weights-00001.safetensors").write_bytes(b"half")
    assert cli.main(["resume", str(whole), f"trainer.max_steps={STEPS + 1}", "--changed-rate"]) == 0
    assert left.name in capfd.readouterr().err and not left.exists()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("optim.lr=1e-4", "optim.lr cannot change when a run is resumed, because losses depend on it"),
        ("trainer.global_batch_samples=8", "trainer.global_batch_samples cannot change"),
        ("seed=1", "seed cannot change"),
        ("adapter=none", "adapter cannot change"),
        ("trainer.max_stps=40", "trainer.max_stps is not a key: did you mean trainer.max_steps?"),
        ("trainer.devices=3", "trainer.global_batch_samples=4 is not a multiple of 3 devices"),
    ],
)
def test_what_losses_depend_on_may_not_change(
    whole: Path, word: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (whole / "run.yaml").read_text()
    assert cli.main(["resume", str(whole), word]) == 2
    assert says in capfd.readouterr().err
    assert (whole / "run.yaml").read_text() == before


def test_dropout_differs_between_ranks_and_is_exact_after_a_resume(runs: Runs) -> None:
    """The recipe of one rank, with dropout, on two."""
    words = [word for word in runs.words("one", "two-whole") if not word.startswith("trainer.devices")]
    words += ["trainer.devices=2", "trainer.max_steps=6", "checkpoint.every_steps=3"]
    code, err = runs.end(words)
    assert code == 0, err
    found = store.choose(runs["two-whole"] / "checkpoints", "3")
    states = [found.read("rng", f"rank{rank}.cpu") for rank in range(2)]
    assert not states[0].equal(states[1])
    shutil.copytree(runs["two-whole"], runs["two"])
    text = (runs["two"] / "run.yaml").read_text().replace(str(runs["two-whole"]), str(runs["two"]))
    (runs["two"] / "run.yaml").write_text(text)
    code, err = runs.end(["resume", str(runs["two"]), "--checkpoint", "3"])
    assert code == 0, err
    assert losses(runs["two"]) == losses(runs["two-whole"])


LONG = ["trainer.max_steps=100000"]


@pytest.mark.parametrize("kind", [pytest.param("one", marks=pytest.mark.slow), "ddp"])
def test_a_second_interrupt_ends_at_once(runs: Runs, kind: str) -> None:
    """Between two signals that close a step may end, and then the run has stopped already with a checkpoint."""
    name = f"twice-{kind}"
    process = runs.start(runs.words(kind, name, *LONG))
    runs.after(process, name)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (75, 130) and "Traceback" not in err
    assert len(records(runs[name])) < 1000
