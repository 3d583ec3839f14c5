"""What a cluster does not allow: each refusal in one line, with what to write instead."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from aitrain.config import RunConfig
from aitrain.launch.clusters import Cluster, load
from aitrain.launch.refusals import Place, cluster_faults, opens_hub, placeholder_fault, purged_area
from aitrain.launch.submit import plan
from aitrain.models.folder import inspect
from aitrain.recipe import compose

from .specimens import NOBODY
from .test_binaries import elf, sif

CUDA, ROCM, CPU = ("'13.0'", "None"), ("None", "'7.0'"), ("None", "None")


def environment(folder: Path, machine: int = 62, torch: tuple[str, str] = CUDA) -> Path:
    """Lay out a virtual environment: a Python of an architecture, a torch of a build."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").write_bytes(elf(machine))
    packages = folder / "lib/python3.12/site-packages"
    (packages / "torch").mkdir(parents=True)
    (packages / "torch/version.py").write_text(f"cuda: str = {torch[0]}\nhip: str = {torch[1]}\n")
    return folder


@dataclass
class Desk:
    """Asks what a cluster says to a recipe."""

    folder: Path
    place: Place

    def faults(self, cluster: str | Cluster, *words: str, nodes: int = 1, run_dir: str = "/shared/runs/x") -> list[str]:
        """Return every fault."""
        where = load(cluster, NOBODY) if isinstance(cluster, str) else cluster
        config = self.config(f"run.dir={run_dir}", *words)
        job = plan(config, where, nodes, "sft_lora", inspect(config.model))
        return cluster_faults(config, where, job.ask, Path(run_dir), self.place)

    def config(self, *words: str) -> RunConfig:
        """Return a recipe with words."""
        return compose("sft_lora", ["model.path=asset:tiny-llama", "data.path=d.jsonl", *words])


@pytest.fixture
def desk(outside: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Somebody with a CUDA environment for x86, in a folder of the parallel file system."""
    monkeypatch.chdir(outside)
    venv = environment(outside / "venv")
    return Desk(outside, Place(venv / "bin/python", venv / "lib/python3.12/site-packages", {"SCRATCH": "/p/scratch"}))


def test_a_job_that_is_right_is_not_refused(desk: Desk) -> None:
    for cluster, words in {
        "snellius_a100": [],
        "snellius_h100": ["trainer.devices=1"],
        "leonardo": ["cluster.account=EUHPC_D01_001"],
        "marenostrum5": ["cluster.account=ehpc123"],
        "meluxina": ["cluster.account=p200001"],
        "karolina": ["cluster.account=OPEN-1-1"],
        "deucalion": ["cluster.account=f2024g"],
        "discoverer_plus": ["cluster.qos=ehpc-aif-2026pg01-001"],
        "vega": [],
        "juwels_booster": [],
        "dgx_h200": [],
        "generic": [],
    }.items():
        assert desk.faults(cluster, *words) == [], cluster
    assert len(desk.faults("snellius_h100", nodes=2)) == 0


@pytest.mark.parametrize(
    ("cluster", "words", "nodes", "says"),
    [
        ("snellius_h100", [], 89, "--nodes=89, but partition gpu_h100 allows 88: use at most 88"),
        (
            "leonardo",
            ["cluster.account=a"],
            100,
            "--nodes=100, but partition boost_usr_prod allows 64: use at most 64, or cluster.qos=boost_qos_bprod",
        ),
        ("leonardo", ["cluster.account=a", "cluster.qos=boost_qos_bprod"], 4, "is for 65 nodes or more"),
        ("meluxina", ["cluster.account=a", "cluster.qos=short"], 11, "11 x 4 GPUs are 44, but QoS short allows 40"),
        ("isambard_ai", ["cluster.venv=ARM"], 9, "are 36, but partition workq allows 32: use at most --nodes=8"),
        (
            "lumi_g",
            ["cluster.container=AMD"],
            1,
            "cluster.account is missing: lumi_g bills every job to an account: add --account=ACCOUNT (for example pro",
        ),
        (
            "discoverer_plus",
            [],
            1,
            "cluster.qos is missing: every job on discoverer_plus needs a QoS: add --qos=QOS (for example the name",
        ),
        ("snellius_h100", ["trainer.devices=8"], 1, "a node of snellius_h100 has 4 GPUs: use at most 4"),
        (
            "lumi_g",
            ["cluster.container=AMD", "cluster.account=a", "trainer.devices=3", "trainer.global_batch_samples=33"],
            1,
            "standard-g gives whole nodes of 8 GCDs and bills all of them: write trainer.devices=8 or leave it out, or "
            "cluster.partition=small-g",
        ),
        ("snellius_h100", ["trainer.devices=2"], 2, "parts of a node to single-node jobs only: write --nodes=1"),
        (
            "snellius_h100",
            ["cluster.partition=gpu_h10"],
            1,
            "cluster.partition=gpu_h10 does not exist on snellius_h100: did you mean gpu_h100?",
        ),
        ("leonardo", ["cluster.account=a", "cluster.qos=lprod"], 1, "did you mean boost_qos_lprod?"),
        ("snellius_h100", ["cluster.account='a b'"], 1, "cluster.account='a b' cannot be used in a job script"),
        (
            "snellius_h100",
            ["trainer.accelerator=cpu", "trainer.precision=fp32"],
            1,
            "would leave the GPUs of snellius_h100 idle",
        ),
        (
            "snellius_h100",
            ["cluster.time_min=5"],
            1,
            "leaves no time to train, because the run must save 300 s before",
        ),
        (
            "jupiter",
            [],
            1,
            "is built for x86_64, but the nodes of jupiter are aarch64: write cluster.container=IMAGE or",
        ),
        (
            "lumi_g",
            ["cluster.account=a"],
            1,
            "its torch is built for NVIDIA GPUs, but lumi_g has AMD GPUs: write cluster.con",
        ),
        (
            "jupiter",
            ["cluster.container=X86"],
            1,
            "is built for x86_64, but the nodes of jupiter are aarch64: name an image",
        ),
        ("snellius_h100", ["cluster.container=none.sif"], 1, "cluster.container=none.sif does not exist"),
        ("vega", ["cluster.venv=none"], 1, "cluster.venv=none does not exist: name a folder or a .tar"),
        ("vega", ["cluster.venv=EMPTY"], 1, "is not a virtual environment (no bin/python)"),
        ("vega", ["cluster.venv=ZIP"], 1, "is neither a folder nor an archive: pack it as .tar or .tar.gz"),
        (
            "snellius_h100",
            ["cluster.venv=CPU"],
            1,
            "its torch is built for CPUs only, but snellius_h100 has NVIDIA GPUs",
        ),
        ("snellius_h100", ["cluster.venv=ARM"], 1, "is built for aarch64, but the nodes of snellius_h100 are x86_64"),
        ("isambard_ai", ["cluster.container=IMAGE"], 1, "no container runtime is known at isambard_ai: leave it out"),
        (
            "lumi_g",
            ["cluster.venv=AMD_VENV", "cluster.account=a", "model.attention=flash_attention_2"],
            1,
            "flash-attn is built for CUDA, but the devices of lumi_g are AMD's: write model.attention=sdpa",
        ),
        (
            "leonardo",
            ["cluster.account=a", "model.path=org/model", "model.allow_network=true"],
            1,
            "model.path=org/model is fetched from a hub, but the compute nodes of leonardo have no network",
        ),
        (
            "snellius_h100",
            ["model.path=org/model", "model.allow_network=true"],
            1,
            "the compute nodes of snellius_h100 may have no network (not documented)",
        ),
        (
            "leonardo",
            ["cluster.account=a", "logger=wandb", "logger.mode=online"],
            1,
            "write logger.mode=offline, and `wandb",
        ),
    ],
)
def test_each_refusal_is_one_line(desk: Desk, cluster: str, words: list[str], nodes: int, says: str) -> None:
    (desk.folder / "IMAGE").write_bytes(sif(b"04"))
    (desk.folder / "X86").write_bytes(sif(b"02"))
    (desk.folder / "AMD").write_bytes(sif(b"02"))
    (desk.folder / "ZIP").write_bytes(b"PK")
    (desk.folder / "EMPTY").mkdir()
    environment(desk.folder / "ARM", machine=183)
    environment(desk.folder / "CPU", torch=CPU)
    environment(desk.folder / "AMD_VENV", torch=ROCM)
    files = {path.name for path in desk.folder.iterdir()}
    given = [
        f"{key}={desk.folder / value}" if value in files else word
        for word in words
        for key, _, value in [word.partition("=")]
    ]
    (fault,) = desk.faults(cluster, *given, nodes=nodes)
    assert says in fault and "\n" not in fault


@pytest.mark.parametrize(
    ("cluster", "run_dir", "words", "says"),
    [
        (
            "snellius_h100",
            "/scratch-local/me/x",
            ["cluster.time_min=7200"],
            "deleted after 6 days, but this job can end 6 days",
        ),
        (
            "snellius_h100",
            "/dev/shm/x",
            [],
            "is on node-local storage, which other nodes and a requeued job cannot see",
        ),
        ("snellius_h100", "/tmp/x", [], "move it to the parallel file system"),
        ("discoverer_plus", "/raid/x", ["cluster.qos=q"], "is on node-local storage"),
        (
            "snellius_h100",
            "/shared/x",
            ["checkpoint.path=/tmp/c"],
            "checkpoint.path=/tmp/c is on node-local storage",
        ),
    ],
)
def test_a_run_directory_that_would_be_lost_is_refused(
    desk: Desk, cluster: str, run_dir: str, words: list[str], says: str
) -> None:
    (fault,) = desk.faults(cluster, *words, run_dir=run_dir)
    assert says in fault


@pytest.mark.parametrize(
    "word",
    [
        "data.path=/tmp/d.jsonl",
        "data.validation_path=/dev/shm/v.jsonl",
        "model.path=/tmp/model",
        "model.chat_template=/var/tmp/t.jinja",
    ],
)
def test_a_file_that_the_nodes_cannot_see_is_refused(desk: Desk, word: str) -> None:
    (fault,) = desk.faults("snellius_h100", word)
    assert fault.startswith(f"{word} is on node-local storage") and "parallel file system" in fault


def test_a_relative_path_counts_from_here(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert desk.faults("snellius_h100", "data.path=here.jsonl") == []
    monkeypatch.chdir(tmp_path)
    (fault,) = desk.faults("snellius_h100", "data.path=here.jsonl")
    assert fault.startswith("data.path=here.jsonl is on node-local storage")


def test_prepared_data_that_the_nodes_cannot_see_is_refused(desk: Desk) -> None:
    there = Desk(desk.folder, Place(desk.place.python, desk.place.packages, {"AITRAIN_CACHE": "/tmp/cache"}))
    (fault,) = there.faults("snellius_h100")
    assert fault.startswith("AITRAIN_CACHE=/tmp/cache is on node-local storage")


def test_an_environment_that_the_nodes_cannot_see_is_refused(desk: Desk, tmp_path: Path) -> None:
    venv = environment(tmp_path / "venv")
    (fault,) = desk.faults("snellius_h100", f"cluster.venv={venv}")
    assert fault.startswith(f"cluster.venv={venv} is on node-local storage")
    there = Desk(desk.folder, Place(venv / "bin/python", venv / "lib/python3.12/site-packages", {}))
    (fault,) = there.faults("snellius_h100")
    assert fault.startswith(f"the Python of this environment={venv}/bin/python is on node-local storage")


def test_a_purge_after_the_end_of_the_job_is_no_fault(desk: Desk) -> None:
    assert desk.faults("snellius_h100", "cluster.time_min=5760", run_dir="/scratch-local/me/x") == []  # 4 + 1 < 6 days
    assert desk.faults("snellius_h100", "cluster.time_min=7200", run_dir="/scratch-shared/me/x") == []
    assert desk.faults("snellius_h100", "cluster.time_min=7200", run_dir="/scratch-localized/x") == []


def test_areas_behind_a_variable_are_found(desk: Desk) -> None:
    juwels = load("juwels_booster", NOBODY)
    area = purged_area(juwels, Path("/p/scratch/me/x"), {"SCRATCH": "/p/scratch"})
    assert area is not None and area.purge_days == 90
    assert purged_area(juwels, Path("/p/scratch/me/x"), {}) is None
    assert purged_area(juwels, Path("/p/project/x"), {"SCRATCH": "/p/scratch"}) is None


def test_several_faults_are_told_at_once(desk: Desk) -> None:
    said = desk.faults("marenostrum5", "cluster.time_min=6000", "cluster.partition=ac", nodes=101)
    assert len(said) == 3 and all("\n" not in fault for fault in said)


def test_a_container_speaks_for_itself(desk: Desk) -> None:
    """What is inside cannot be seen: the Python and the torch of the submitting environment do not count then."""
    (desk.folder / "image.sif").write_bytes(sif(b"04"))
    assert desk.faults("jupiter", f"cluster.container={desk.folder}/image.sif") == []
    (desk.folder / "train.toml").write_text('image = "x"\n')
    assert desk.faults("clariden", f"cluster.container={desk.folder}/train.toml") == []


def test_a_site_with_a_network_may_use_it(desk: Desk) -> None:
    words = ["cluster.account=a", "logger=wandb", "logger.mode=online", "model.path=org/m", "model.allow_network=true"]
    (desk.folder / "rocm.sif").write_bytes(sif(b"02"))
    assert desk.faults("lumi_g", *words, f"cluster.container={desk.folder}/rocm.sif") == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model.path=org/m", "model.allow_network=true"], True),
        (["model.path=org/m"], False),
        (["model.path=asset:tiny-llama", "model.allow_network=true"], False),
        ([f"model.path={Path.home()}", "model.allow_network=true"], False),
    ],
)
def test_what_is_fetched_from_a_hub(desk: Desk, words: list[str], expected: bool) -> None:
    assert opens_hub(desk.config(*words)) is expected


def test_nothing_is_handed_in_to_a_machine_that_does_not_exist() -> None:
    assert "its hardware is not published" in str(placeholder_fault(load("groningen", NOBODY)))
    assert placeholder_fault(load("lumi_g", NOBODY)) is None


def test_paths_that_slurm_would_split_are_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (fault,) = desk.faults("snellius_h100", run_dir="/shared/my run")
    assert "run.dir=/shared/my run cannot be used in a job script" in fault
    (desk.folder / "50%").mkdir()
    monkeypatch.chdir(desk.folder / "50%")
    (fault,) = desk.faults("snellius_h100")
    assert "the current directory=" in fault


def test_the_own_machine_may_keep_runs_anywhere(desk: Desk) -> None:
    """On `local_slurm` all nodes are this machine, and /tmp is as good a place as any."""
    cpu = environment(desk.folder / "cpu", torch=CPU)
    there = Desk(desk.folder, Place(cpu / "bin/python", cpu / "lib/python3.12/site-packages", os.environ))
    assert there.faults("local_slurm", "trainer.accelerator=cpu", "trainer.precision=fp32", run_dir="/tmp/x") == []
