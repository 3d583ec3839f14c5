"""Every kind of bad input, through the command line: one clear message, the right exit code, nothing left behind."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tiny import CONTEXT_TOKENS, make_data

from aitrain import cli

PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE = 1


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with a cache of its own beside it."""
    monkeypatch.setenv("AITRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def words(place: Path, tiny_model: Path, tiny_data: Path) -> list[str]:
    """The words of a training that works."""
    return [
        "train",
        "sft_full",
        "data.validation_samples=null",
        f"model.path={tiny_model}",
        f"data.path={tiny_data}",
        f"data.sequence_tokens={CONTEXT_TOKENS}",
        "trainer.accelerator=cpu",
        "trainer.precision=fp32",
        "trainer.max_epochs=null",
        "trainer.max_steps=2",
        "trainer.global_batch_samples=4",
        "trainer.micro_batch_samples=2",
        "run.dir=run",
    ]


Refused = Callable[..., str]


@pytest.fixture
def refused(place: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Run a command in this process that must be refused; return its message."""

    def run(words: Sequence[str], code: int, *says: str, lines: int = 1) -> str:
        before = everything(place.parent)
        capfd.readouterr()
        assert cli.main(words) == code
        printed = capfd.readouterr()
        assert_clear(printed.err, says, lines)
        assert "Traceback" not in printed.out
        assert everything(place.parent) == before, "nothing is left behind"
        return printed.err

    return run


def assert_clear(err: str, says: Sequence[str], lines: int) -> None:
    """One message: every word of `says` in it, no traceback, no more than its lines."""
    assert "Traceback" not in err and 'File "' not in err
    for text in says:
        assert text in err
    assert len(err.strip().splitlines()) == lines, err


def everything(folder: Path) -> set[str]:
    """Every file and folder below a folder, except an empty cache."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {"cache", "cache/prepared", "home"}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("optim.lrr=1", "optim.lrr is not a key: did you mean optim.lr?"),
        ("strategy=zero3", "strategy=zero3 is not an option of strategy: did you mean deepspeed_zero3?"),
        ("trainer.max_steps=many", "trainer.max_steps=many is not a whole number: write"),
        ("trainer.max_steps=2.5", "trainer.max_steps=2.5"),
        ("data.shuffle=perhaps", "data.shuffle=perhaps is neither true nor false"),
        ("trainer.precision=fp64", "trainer.precision=fp64 is not one of auto, fp32, bf16"),
        ("trainer.global_batch_samples=5", "trainer.global_batch_samples=5 is not a multiple of 1 devices x 2"),
        ("trainer.devices=3", "trainer.global_batch_samples=4 is not a multiple of 3 devices x 2 per device"),
        (
            "model.path=org/name",
            "model.path=org/name is not a folder here. If it is a model on a hub, fetch it first",
        ),
        ("model.path=./absent", "model.path=./absent does not exist"),
        (f"data.sequence_tokens={CONTEXT_TOKENS + 1}", f"write data.sequence_tokens={CONTEXT_TOKENS} or less"),
    ],
)
def test_a_wrong_word_is_refused(words: list[str], refused: Refused, word: str, says: str) -> None:
    refused([*words, word], 2, says)


def test_every_fault_of_a_recipe_is_told_at_once(words: list[str], refused: Refused) -> None:
    faults = ["optim.lrr=1", "strategy=zero3", "trainer.max_steps=many"]
    refused([*words, *faults], 2, "optim.lrr", "strategy=zero3", "trainer.max_steps=many", lines=3)


def test_a_broken_recipe_file_names_the_line(place: Path, refused: Refused) -> None:
    Path("mine.yaml").write_text("defaults: [base, _self_]\noptim:\n  lr: [1\n")
    refused(["train", "mine.yaml"], 2, "mine.yaml:4: broken YAML")


@pytest.mark.parametrize("how", ["cuda", "devices"])
def test_devices_that_are_not_there(words: list[str], refused: Refused, how: str) -> None:
    if how == "cuda" and torch.cuda.is_available():
        how = "devices"  # where there is a GPU, only their number can be wrong
    if how == "cuda":
        says = "trainer.accelerator=cuda, but this machine has no visible GPU: write trainer.accelerator=cpu"
        refused([*words, "trainer.accelerator=cuda"], 2, says)
        return
    many = 4096
    batch = ["trainer.micro_batch_samples=null", f"trainer.global_batch_samples={many}"]
    refused([*words, *batch, f"trainer.devices={many}"], 2, f"trainer.devices={many}, but", "use at most")


def test_wandb_online_without_a_key(words: list[str], refused: Refused) -> None:
    says = "logger.mode=online has no key for api.wandb.ai: set WANDB_API_KEY"
    refused([*words, "logger=wandb", "logger.mode=online"], 2, says)


GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
SILENT = {"messages": [{"role": "user", "content": "a"}]}
DATA: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "missing": (None, ("data.path=d.jsonl does not exist",)),
    "empty": ("", ("data.path=d.jsonl is empty",)),
    "blank": ("\n\n", ("d.jsonl", "no record")),
    "broken": (json.dumps(GOOD) + '\n{"messages": [\n' + json.dumps(GOOD), ("d.jsonl:2",)),
    "unknown": (json.dumps(GOOD) + '\n{"question": "a", "answer": "b"}\n', ("d.jsonl:2", "question")),
    "no object": (json.dumps(GOOD) + "\n[1, 2]\n", ("d.jsonl:2",)),
    "silent": (f"{json.dumps(GOOD)}\n{json.dumps(SILENT)}\n", ("1 of 2 samples have no trained token", "d.jsonl:2")),
    "all silent": (json.dumps(SILENT) + "\n", ("1 of 1 samples have no trained token",)),
    "long": (
        json.dumps({"messages": [GOOD["messages"][0], {"role": "assistant", "content": "z9" * CONTEXT_TOKENS}]}),
        (f"1 of 1 samples are longer than data.sequence_tokens={CONTEXT_TOKENS} (d.jsonl:1 has",),
    ),
    "binary": ("\x00\x01\x02", ("d.jsonl:1",)),
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("command", ["train", "check"])
def test_bad_data(words: list[str], refused: Refused, command: str, kind: str) -> None:
    content, says = DATA[kind]
    if content is not None:
        Path("d.jsonl").write_text(content)
    lines = 2 if kind == "unknown" else 1  # the words that name the columns stand on a line of their own
    refused([command, *words[1:], "data.path=d.jsonl"], 3, *says, lines=lines)


def test_dropping_every_sample_leaves_nothing_to_learn(words: list[str], refused: Refused) -> None:
    Path("d.jsonl").write_text(json.dumps(SILENT) + "\n")
    says = ("no trained tokens in 1 records", "nothing to learn")
    refused([*words, "data.path=d.jsonl", "data.no_trained_tokens=drop"], 3, *says)


def test_holding_out_everything_leaves_nothing_to_train_on(words: list[str], refused: Refused) -> None:
    shutil.rmtree("../cache", ignore_errors=True)
    assert cli.main([*words, "run.dir=warm", "trainer.max_steps=1", "export.at_end=false"]) == 0
    refused([*words, "data.validation_samples=13"], 3, "data.validation_samples=13 leaves nothing to train on")


def sharded(folder: Path) -> None:
    """Cut the weights of a model folder into shards."""
    from transformers import LlamaForCausalLM

    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="200KB")
    (folder / "model.safetensors").unlink(missing_ok=True)


def lose_a_shard(folder: Path) -> None:
    sharded(folder)
    min(folder.glob("model-*.safetensors")).unlink()


def cut_a_shard(folder: Path) -> None:
    sharded(folder)
    shard = min(folder.glob("model-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])


def pickle_weights(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (no_tokenizer, "has no tokenizer: copy tokenizer.json"),
        (lose_a_shard, "is missing model-00001-of-"),
        (cut_a_shard, "model-00001-of-"),
        (pickle_weights, "has only pickle weights, which can run arbitrary code"),
        (no_template, "has no chat template (it is a base model): choose one with model.chat_template=NAME (chatml, "),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "its tokenizer cannot be loaded"),
    ],
)
def test_a_damaged_model(
    words: list[str], refused: Refused, tiny_model: Path, damage: Callable[[Path], object], says: str
) -> None:
    damage(Path(shutil.copytree(tiny_model, "model")))
    refused([*words, "model.path=model"], 2, says)


def test_a_run_directory_that_exists_is_kept(words: list[str], refused: Refused) -> None:
    Path("run").mkdir()
    Path("run/mine.txt").write_text("mine")
    refused(words, 2, "run.dir=run exists already", "aitrain resume run")
    assert Path("run/mine.txt").read_text() == "mine"


def test_a_run_directory_below_a_file(words: list[str], refused: Refused) -> None:
    Path("file").write_text("")
    refused([*words, "run.dir=file/run"], 2, "run.dir=file/run cannot be created")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A LoRA run of two steps that is done: its checkpoint is small, its merged model is not."""
    folder = tmp_path_factory.mktemp("finished")
    data = make_data(folder / "d.jsonl")
    words = [f"model.path={tiny_model}", f"data.path={data}", "data.sequence_tokens=128", "trainer.accelerator=cpu"]
    words += ["trainer.precision=fp32", "trainer.max_epochs=null", "trainer.max_steps=2", "adapter.rank=2"]
    words += ["trainer.global_batch_samples=4", "trainer.micro_batch_samples=2", "export.at_end=false"]
    assert cli.main(["train", "sft_lora", *words, f"run.dir={folder / 'run'}"]) == 0
    return folder / "run"


def test_an_export_never_overwrites(finished: Path, refused: Refused) -> None:
    Path("there").mkdir()
    refused(["export", str(finished), "--to", "there"], 2, "--to there exists already: choose a new folder")


def test_an_export_below_a_file(finished: Path, refused: Refused) -> None:
    Path("file").write_text("")
    refused(["export", str(finished), "--to", "file/model"], 2, "--to file/model cannot be")


def test_an_export_of_a_run_without_a_checkpoint(finished: Path, refused: Refused) -> None:
    Path("run").mkdir()
    shutil.copy(finished / "run.yaml", "run")
    refused(["export", "run", "--to", "model"], 2, "run/checkpoints has no checkpoint")


def limited(words: Sequence[str], limit: Callable[[], object]) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own under a limit."""
    command = [sys.executable, "-m", "aitrain", *words]
    return subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)


def without_override() -> None:
    """Let permissions count for root as for everybody else; other users have no such privilege to lose."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0):
        raise PermissionError("prctl(PR_CAPBSET_DROP)")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["run.dir=locked/run"], "run.dir=locked/run: you have no write permission"),
        (["checkpoint.path=locked/points"], "checkpoint.path=locked/points: you have no write permission"),
    ],
)
def test_a_folder_that_is_not_writable(words: list[str], place: Path, more: list[str], says: str) -> None:
    (place / "locked").mkdir(mode=0o555)
    before = everything(place)
    done = limited([*words, *more], without_override)
    assert done.returncode == 2
    assert_clear(done.stderr, [says], 1)
    assert everything(place) == before


def test_an_export_to_a_folder_that_is_not_writable(finished: Path, place: Path) -> None:
    (place / "locked").mkdir(mode=0o555)
    done = limited(["export", str(finished), "--to", "locked/model"], without_override)
    assert done.returncode == 2
    assert_clear(done.stderr, ["--to locked/model cannot be written"], 1)


def file_size(limit: int) -> Callable[[], None]:
    """A disk that takes no file beyond so many bytes: writing on fails as on a full disk, with another number."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def left(folder: Path) -> list[str]:
    """What stands half-written below a folder."""
    return [str(path) for path in folder.rglob("*") if path.name.endswith(".part")]


def test_disk_full_while_the_run_directory_is_made(words: list[str], place: Path) -> None:
    done = limited(words, file_size(500))
    assert done.returncode == 2
    assert_clear(done.stderr, [f"run.dir={place}/run", "File too large"], 1)
    assert not everything(place)


def test_disk_full_while_the_data_is_prepared(words: list[str], place: Path) -> None:
    make_data(place / "many.jsonl", 200)
    before = everything(place.parent)
    done = limited([*words, "data.path=many.jsonl"], file_size(6000))
    assert done.returncode == 2
    assert_clear(done.stderr, ["prepared data cannot be written", str(place.parent / "cache")], 1)
    assert everything(place.parent) == before


def test_disk_full_at_a_checkpoint_keeps_the_one_before(words: list[str], place: Path) -> None:
    """The second checkpoint fails; the first is whole, and the run continues from it when there is room."""
    assert cli.main([*words, "trainer.max_steps=1", "export.at_end=false", "schedule=constant"]) == 0
    done = limited(["resume", "run", "trainer.max_steps=2"], file_size(100_000))
    assert done.returncode == 2
    assert "run/checkpoints/step-00000002" in done.stderr and "Traceback" not in done.stderr
    assert not left(place)
    assert [path.name for path in (place / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    assert cli.main(["resume", "run"]) == 0
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]


def test_disk_full_while_a_log_grows(words: list[str], place: Path) -> None:
    """A line that cannot be appended ends the run with a word and not with a traceback."""
    done = limited([*words, "trainer.max_steps=40", "export.at_end=false"], file_size(4000))
    assert done.returncode == 2
    assert "metrics.jsonl cannot be written (" in done.stderr and "Traceback" not in done.stderr
    steps = [json.loads(line)["step"] for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)) and steps, "whole lines only"


def test_disk_full_while_exporting(finished: Path, place: Path) -> None:
    done = limited(["export", str(finished), "--to", "model"], file_size(100_000))
    assert done.returncode == 2
    assert "--to model cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert not everything(place)


def test_disk_full_at_the_export_of_a_run_keeps_its_checkpoint(words: list[str], place: Path) -> None:
    more = ["sft_lora" if word == "sft_full" else word for word in words]
    done = limited([*more, "adapter.rank=2"], file_size(100_000))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "run/export cannot be written" in done.stderr
    assert f"aitrain export {place}/run --to" in done.stderr
    assert not left(place) and not (place / "run" / "export").exists()
    assert cli.main(["export", "run", "--to", "model"]) == 0
