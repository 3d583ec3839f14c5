"""`aitrain submit`: the script alone on a dry run, a job folder and sbatch otherwise, nothing at all when refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aitrain import cli
from aitrain.launch.submit import plan
from aitrain.models.folder import Kind, ModelFacts
from aitrain.recipe import compose, load
from aitrain.report.runs import summary

from .test_refusals import environment

HEAVY = ("torch", "lightning", "pytorch_lightning", "deepspeed", "transformers", "peft", "wandb", "numpy", "pyarrow")


@pytest.fixture
def shared(outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory on the parallel file system, as far as the rules can tell."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("AITRAIN_CACHE", raising=False)
    for name in ("SLURM_PROCID", "RANK", "WORLD_SIZE", *(name for name in os.environ if name.startswith("SBATCH_"))):
        monkeypatch.delenv(name, raising=False)
    place = outside / "shared"
    place.mkdir()
    monkeypatch.chdir(place)
    environment(place / "venv")
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (place / "chats.jsonl").write_text(json.dumps(record) + "\n")
    return place


WORDS = ["model.path=asset:tiny-llama", "data.path=chats.jsonl", "data.sequence_tokens=64", "cluster.venv=venv"]
SNELLIUS = ["submit", "sft_lora", "--cluster", "snellius_h100", "--nodes", "2", *WORDS]


def contents(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}


def test_a_dry_run_prints_the_script_alone(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(shared)
    assert cli.main([*SNELLIUS, "--time", "04:00:00", "run.dir=runs/x", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("#!/bin/bash\n") and out.endswith('exit "$code"\n') and err == ""
    for line in (
        "#SBATCH --time=04:00:00",
        "#SBATCH --nodes=2",
        f"#SBATCH --chdir={shared}",
        f"RUN_DIR={shared}/runs/x",
        f"PYTHON={shared}/venv/bin/python",
        "# Recipe: sft_lora model.path=asset:tiny-llama data.path=chats.jsonl data.sequence_tokens=64 cluster.venv=venv"
        " run.dir=runs/x",
    ):
        assert line in out.splitlines()
    assert contents(shared) == before
    assert subprocess.run(["bash", "-n"], input=out, text=True).returncode == 0


def test_more_time_than_the_partition_allows_makes_a_chain(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SNELLIUS, "--time", "11-0", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "\n#SBATCH --time=5-00:00:00\n" in out and "\n#SBATCH --requeue\n" in out
    assert "note: 11-00:00:00 is more than gpu_h100 allows (5-00:00:00): the run becomes a chain of about 3 jobs" in err


def test_a_dry_run_loads_neither_torch_nor_slurm(shared: Path) -> None:
    script = (
        "import json, sys; from aitrain.cli import main; code = main(sys.argv[1:]); "
        "print('\\n' + json.dumps([code, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *SNELLIUS, "--dry-run"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": ""},  # no sbatch, no scontrol, nothing to be called
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    assert not {*HEAVY, "pyslurm", "submitit"} & set(modules)


FAKE = """#!{python}
import json, os, sys
assert not [name for name in os.environ if name.startswith("SBATCH_")], "they would win over the script"
with open(os.environ["SEEN"], "w") as seen:
    json.dump([sys.argv[1:], open(sys.argv[-1]).read()], seen)
if os.environ.get("REFUSES"):
    sys.exit("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified")
print("4711;snellius")
"""


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of sbatch, which notes what it gets; the real one is tried in the Slurm tests."""
    program = tmp_path / "bin/sbatch"
    program.parent.mkdir()
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    return tmp_path / "seen"


def test_a_job_folder_is_written_and_handed_to_sbatch(
    shared: Path, sbatch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*SNELLIUS, "--account", "budget", "run.name=my first"]) == 0
    (run,) = (shared / "runs").iterdir()
    assert {path.name for path in run.iterdir()} == {"run.yaml", "job.sbatch", "logs", "events.jsonl"}
    words, text = json.loads(sbatch.read_text())
    assert words == ["--parsable", f"{run}/job.sbatch"] and text == (run / "job.sbatch").read_text()
    assert "#SBATCH --job-name=my-first" in text and "#SBATCH --account=budget" in text
    config = load(run / "run.yaml")
    assert config.run.dir == str(run) and config.cluster.name == "snellius_h100"
    assert config.cluster.account == "budget" and config.trainer.nodes is None, "any number of nodes may continue it"
    event = json.loads((run / "events.jsonl").read_text())
    assert (event["event"], event["job"], event["cluster"]) == ("submitted", "4711", "snellius_h100")
    out = capsys.readouterr().out
    assert (
        "Submitted job 4711 to snellius_h100: 2 nodes x 4 GPUs, 1-00:00:00, at most 192 GPU-hours = 36,864 SBU" in out
    )
    assert f"log     {run}/logs/slurm-4711.out" in out and "`aitrain check`" in out
    assert summary(run).state == "submitted, not started"


def test_variables_of_sbatch_do_not_win_over_the_script(
    shared: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "budget")
    monkeypatch.setenv("SBATCH_PARTITION", "rome")
    assert cli.main(SNELLIUS) == 0
    _, text = json.loads(sbatch.read_text())
    assert "#SBATCH --account=budget" in text and "#SBATCH --partition=gpu_h100" in text
    assert "note: SBATCH_PARTITION=rome is ignored: it would override the job script" in capsys.readouterr().err


def test_when_sbatch_refuses_nothing_is_left(
    shared: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REFUSES", "1")
    assert cli.main([*SNELLIUS, "run.dir=runs/x"]) == 2
    err = capsys.readouterr().err
    assert "sbatch refused the job: error: Batch job submission failed: Invalid account" in err
    assert sbatch.is_file() and not (shared / "runs/x").exists()


def test_after_an_interrupt_the_folder_stays_because_the_job_may_be_queued(
    shared: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("aitrain.launch.slurm.Slurm.submit", interrupted)
    assert cli.main([*SNELLIUS, "run.dir=runs/x"]) == 130
    assert (shared / "runs/x/job.sbatch").is_file() and (shared / "runs/x/run.yaml").is_file()


def test_without_sbatch_nothing_is_written(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(SNELLIUS) == 2
    assert "sbatch is not found here: run this on a login node" in capsys.readouterr().err
    assert not (shared / "runs").exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "--cluster is missing: add --cluster NAME; choose from clariden"),
        (["--cluster", "snelius_h100"], 2, "cluster snelius_h100 is not known: did you mean snellius_h100?"),
        (["--cluster", "snellius_h100", "cluster.name=lumi_g"], 2, "--cluster and cluster.name=... set the same thing"),
        (["--cluster", "snellius_h100", "--time", "4h"], 2, "--time=4h is not a time limit"),
        (["--cluster", "snellius_h100", "--nodes", "0"], 2, "--nodes=0 must be at least 1"),
        (
            ["--cluster", "snellius_h100", "--nodes", "2", "trainer.nodes=2"],
            2,
            "--nodes and trainer.nodes=... set the same",
        ),
        (["--cluster", "snellius_h100", "--nodes", "89", "trainer.global_batch_samples=356"], 2, "use at most 88"),
        (
            ["--cluster", "snellius_h100", "--nodes", "3", "trainer.global_batch_samples=32"],
            2,
            "is not a multiple of 12 devices x 1 per device: write 24 or 36",
        ),
        (["--cluster", "marenostrum5"], 2, "cluster.account is missing: marenostrum5 bills every job to an account"),
        (["--cluster", "snellius_h100", "model.path=org/m"], 2, "model.path=org/m is not a folder here"),
        (
            ["--cluster", "snellius_h100", "model.path=asset:smollm2-135m-instruct"],
            2,
            "asset:smollm2-135m-instruct is not",
        ),
        (["--cluster", "snellius_h100", "data.path=none.jsonl"], 3, "data.path=none.jsonl does not exist"),
        (["--cluster", "snellius_h100", "optim.lrr=1"], 2, "optim.lrr is not a key: did you mean optim.lr?"),
        (["--cluster", "snellius_h100", "run.dir=venv"], 2, "venv exists already: choose a new one"),
        (["--cluster", "snellius_h100", "run.dir=taken"], 2, "belongs to another run: choose a new one"),
        (
            ["--cluster", "snellius_h100", "run.dir=job"],
            2,
            "is in use (job 12 was submitted for it): choose a new one, or",
        ),
        (["--cluster", "groningen", "--account", "a"], 2, "groningen is a placeholder: its hardware is not published"),
        (["--cluster", "mine.yaml"], 2, "device.per_nod is not a key of device: did you mean per_node?"),
    ],
)
def test_a_refusal_is_one_line_and_writes_nothing(
    shared: Path,
    sbatch: Path,
    words: list[str],
    code: int,
    says: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AITRAIN_CACHE", str(shared / "cache"))
    for name in ("taken", "job"):
        (shared / name).mkdir()
        (shared / name / "run.yaml").write_text("seed: 0\n")
    (shared / "job/job.sbatch").write_text("#!/bin/bash\n")
    (shared / "job/events.jsonl").write_text('{"event": "submitted", "job": "12"}\n')
    (shared / "mine.yaml").write_text("base: snellius_h100\ndevice: {per_nod: 4}\n")
    before = contents(shared)
    assert cli.main(["submit", "sft_lora", *WORDS, *words]) == code
    out, err = capfd.readouterr()
    assert out == "" and "Traceback" not in err
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1 and says in lines[0]
    assert contents(shared) == before and not sbatch.exists()


def test_the_recipe_may_name_cluster_and_budget(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shared / "mine.yaml").write_text(
        "defaults: [sft_lora, _self_]\ncluster: {name: snellius_h100, account: budget, time_min: 90}\n"
    )
    assert cli.main(["submit", "./mine.yaml", *WORDS, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "#SBATCH --account=budget" in out and "#SBATCH --time=01:30:00" in out and "#SBATCH --nodes=1" in out


def test_a_profile_of_the_users_own_is_taken(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Path(os.environ["XDG_CONFIG_HOME"]) / "aitrain/clusters"
    own.mkdir(parents=True)
    (own / "snellius_h100.yaml").write_text("account: budget\nsoftware: {modules: ['2024', Python/3.12.3]}\n")
    assert cli.main([*SNELLIUS, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "#SBATCH --account=budget" in out and "\nmodule load 2024 Python/3.12.3\n" in out


def test_what_a_container_must_see_is_bound(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shared / "image.sif").write_bytes(b"")
    (shared.parent / "data").mkdir()
    (shared.parent / "data/chats.jsonl").write_bytes((shared / "chats.jsonl").read_bytes())
    words = [word for word in WORDS if not word.startswith(("cluster.venv", "data.path"))]
    image = ["cluster.container=image.sif", f"data.path={shared.parent}/data/chats.jsonl"]
    assert cli.main(["submit", "sft_lora", "--cluster", "snellius_h100", *words, *image, "--dry-run"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("IN_CONTAINER=")]
    for part in (f"--bind {shared} ", f"--bind {shared.parent}/data ", '--bind "$NODE_LOCAL" ', f"{shared}/image.sif)"):
        assert part in line


def test_a_purged_place_is_told_but_not_refused(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shared / "mine.yaml").write_text(
        f"base: snellius_h100\nstorage: {{areas: {{here: {{path: '{shared}', purge_days: 30}}}}}}\n"
    )
    assert cli.main(["submit", "sft_lora", "--cluster", "mine.yaml", *WORDS, "--dry-run"]) == 0
    assert "where files are deleted after 30 days: copy what you want to keep" in capsys.readouterr().err


def test_the_notice_follows_from_the_weights_that_are_trained(shared: Path) -> None:
    from aitrain.launch.clusters import load as load_cluster

    cluster = load_cluster("snellius_h100", {})
    eight = ModelFacts("m", Kind.folder, parameters=8_000_000_000)

    def notice(recipe: str, *words: str) -> int:
        return plan(compose(recipe, [*WORDS, *words]), cluster, 1, recipe, eight).ask.signal_s

    # 8e9 x 16 bytes at 1 GB/s and 180 s are 308 s, rounded up to minutes; an adapter is small, so five minutes do
    assert notice("sft_full") == 360 and notice("sft_lora") == 300
    assert notice("sft_full", "cluster.signal_s=900") == 900
