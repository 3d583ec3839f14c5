"""The command line: words in, exit code out, one message and no traceback, and nothing heavy loaded."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aitrain import __version__, cli
from aitrain.commands import Command
from aitrain.recipe import compose, freeze

HEAVY = ("torch", "lightning", "pytorch_lightning", "deepspeed", "transformers", "peft", "wandb", "numpy", "pyarrow")


@pytest.fixture
def data(tmp_path: Path) -> str:
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "train.jsonl").write_text(json.dumps(record) + "\n")
    return f"data.path={tmp_path}/train.jsonl"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    freeze(compose("sft_lora", ["model.path=m", "data.path=d"]), folder / "run.yaml")
    (folder / "metrics.jsonl").write_text('{"step": 7, "loss": 1.25}\n')
    (folder / "events.jsonl").write_text('{"event": "finished"}\n')
    return folder


TINY = ["model.path=asset:tiny-llama", "data.sequence_tokens=64", "trainer.accelerator=cpu"]


def loaded(words: list[str]) -> tuple[int, list[str]]:
    """Return the exit code of a command in a fresh process, and the modules it has loaded."""
    script = (
        "import json, sys; from aitrain.cli import main; code = main(sys.argv[1:]); "
        "print('\\n' + json.dumps([code, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    return code, modules


@pytest.mark.parametrize("words", [["--help"], ["recipes"], ["show", "optim.lr"], ["show"], ["runs", "."]])
def test_light_commands_load_neither_torch_nor_hydra(words: list[str]) -> None:
    code, modules = loaded(words)
    assert code == 0 and not {*HEAVY, "hydra"} & set(modules)


def test_help_does_not_even_load_the_configuration() -> None:
    _, modules = loaded(["--help"])
    assert not {"omegaconf", "yaml"} & set(modules)


def test_a_check_without_data_loads_no_torch(data: str, tmp_path: Path) -> None:
    code, modules = loaded(["check", "sft_full", *TINY, data, "--no-data"])
    assert code == 0 and not set(HEAVY) & set(modules)
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"], "a check leaves nothing behind"


def test_check_says_what_will_run(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "sft_full", *TINY, data, "--no-data"]) == 0
    out = capsys.readouterr().out
    assert "asset:tiny-llama" in out and "adamw lr=2e-5" in out and "No problems found; the data was not read." in out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in ("recipes", "show", "check", "train", "resume", "export", "evaluate", "runs", "fetch", "bench"):
        assert f"\n  {name} " in out
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"aitrain {__version__}\n")


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: aitrain {name}" in capsys.readouterr().out


def test_recipes_are_listed_and_shown_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert "quickstart" in out and "questions with answers, or conversations" in out and "smallest machine" in out
    assert cli.main(["recipes", "sft_lora"]) == 0
    assert "override adapter: lora" in capsys.readouterr().out


def test_show_explains_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "trainer.max_steps"]) == 0
    assert "Maximum number of optimizer steps; `null` = no limit" in capsys.readouterr().out


def test_runs_are_listed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", str(run.parent)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split() == [str(run), "7", "1.2500", "-", "-", "finished"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["trian"], 2, "Unknown command 'trian': did you mean train?"),
        (["show", "optim.lrr"], 2, "optim.lrr is neither a group nor a key: did you mean optim.lr?"),
        (["recipes", "sft"], 2, "recipe sft is not known"),
        (["check", "sft_lra"], 2, "did you mean sft_lora?"),
        (["check", "sft_lora", "optim.lrr=1"], 2, "optim.lrr is not a key: did you mean optim.lr?"),
        (["check", "sft_lora", "optim=adam"], 2, "did you mean adamw?"),
        (["check", "sft_lora", "optim.lr=abc"], 2, "optim.lr=abc is not a float"),
        (["check", "sft_lora"], 2, "model.path is missing"),
        (["train", "sft_lora", "+x=1", "-m"], 2, "+ is refused"),
        (["train", "sft_lora", "-m", "optim.lr=1e-4,x", "model.path=m", "data.path=d"], 2, "optim.lr=x is not a float"),
        (["resume", "none"], 2, "none does not exist: `aitrain runs` lists the runs here"),
        (["export", "tests", "--to", "new"], 2, "tests is not a run directory (no run.yaml)"),
        (["evaluate", "none"], 2, "none does not exist"),
        (["evaluate", "m", "--data", "d", "--lm-eval", "t"], 2, "--lm-eval has no effect on a model alone: remove it"),
        (["evaluate", "m", "--data", "d", "--checkpoint", "5"], 2, "--checkpoint has no effect on a model alone"),
        (["runs", "none"], 2, "none is not a folder"),
        (["check", "sft_full", *TINY, "data.path=none.jsonl", "--no-data"], 3, "data.path=none.jsonl does not exist"),
        (["check", "sft_full", "model.path=./none", "data.path=none.jsonl"], 2, "./none"),
    ],
)
def test_each_mistake_has_its_exit_code_and_no_traceback(
    words: list[str], code: int, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == code
    err = capfd.readouterr().err
    assert says in err and "Traceback" not in err


def test_a_run_is_refused_before_anything_is_made(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), "--to", str(run)]) == 2
    assert cli.main(["export", str(run), "--to", str(run / "new"), "--checkpoint", "latest"]) == 2
    err = capsys.readouterr().err
    assert "exists already: choose a new folder" in err and "--checkpoint latest is not a checkpoint" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--lm-eval", "arc", "--data", "d.csv"], "--data d.csv has no effect with --lm-eval, which has its own data"),
        (["data.header_row=1"], "data.header_row=1 has no effect on a run's own data: remove it"),
    ],
)
def test_evaluate_ignores_nothing(words: list[str], says: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(run), *words]) == 2
    assert says in capsys.readouterr().err


def test_the_words_of_a_benchmark_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def note(args: argparse.Namespace) -> int:
        seen.extend(args.words)
        return 0

    bench = cli.COMMANDS["bench"]
    monkeypatch.setitem(cli.COMMANDS, "bench", replace(bench, run=note))
    assert cli.main(["bench", "train", "--steps", "3", "--help"]) == 0
    assert seen == ["--steps", "3", "--help"]


def test_words_may_stand_in_any_order(capsys: pytest.CaptureFixture[str], data: str) -> None:
    assert cli.main(["check", "--no-data", "sft_full", *TINY, "--show", "3", data]) == 0


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setitem(cli.COMMANDS, "show", Command("", cli.COMMANDS["show"].arguments, broken))
    with pytest.raises(ZeroDivisionError):
        cli.main(["show"])


def test_a_reader_that_leaves_early_is_no_bug() -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "aitrain", "show", "optim"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.wait()


STUB = """
import os, signal, sys, time
with open(os.environ["LOG"], "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if os.environ.get("WAIT"):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("waiting", flush=True)
    time.sleep(60)
sys.exit(4 if "seed=2" in sys.argv else 0)
"""


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """Stand a program in the place of `python`, so that a sweep starts it instead of a training."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\n{STUB}")
    program.chmod(0o755)
    return {**os.environ, "LOG": str(tmp_path / "log"), "PROGRAM": str(program)}


SWEEP = (
    "import os, sys; from aitrain.cli import main; sys.executable = os.environ['PROGRAM']; sys.exit(main(sys.argv[1:]))"
)


def test_a_sweep_runs_in_turn_and_stops_at_the_first_that_fails(stub: dict[str, str], tmp_path: Path) -> None:
    (place := tmp_path / "here").mkdir()
    words = ["train", "sft_lora", "-m", "model.path=m", "data.path=d", "seed=1,2,3"]
    done = subprocess.run([sys.executable, "-c", SWEEP, *words], env=stub, capture_output=True, text=True, cwd=place)
    assert done.returncode == 4 and "run 2 ended with exit code 4; 1 runs were not started" in done.stderr
    (folder,) = (place / "runs").glob("sft_lora-sweep-*")
    assert Path(stub["LOG"]).read_text().splitlines() == [
        f"-m aitrain train sft_lora model.path=m data.path=d seed={seed} run.dir={folder}/{seed - 1}" for seed in (1, 2)
    ]
    assert json.loads((folder / "sweep.json").read_text()) == ["seed=1", "seed=2", "seed=3"]


def test_a_sweep_passes_sigterm_on_and_waits(stub: dict[str, str], tmp_path: Path) -> None:
    (place := tmp_path / "here").mkdir()
    words = ["train", "sft_lora", "-m", "model.path=m", "data.path=d", "seed=1,2"]
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEP, *words], env=stub | {"WAIT": "1"}, stdout=subprocess.PIPE, text=True, cwd=place
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "waiting\n":
            break
    process.terminate()
    assert process.wait() == 75


@pytest.mark.parametrize("name", ["model.safetensors", "out.zip"])
def test_an_export_does_not_make_a_folder_with_the_name_of_a_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text("")
    assert cli.main(["export", str(tmp_path), "--to", str(tmp_path / name)]) == 2
    stem = name.split(".")[0]
    assert capsys.readouterr().err == (
        f"--to {tmp_path}/{name} names a file, but a Hugging Face folder is written: "
        f"write for instance --to {tmp_path}/{stem}\n"
    )
    assert not (tmp_path / name).exists()
