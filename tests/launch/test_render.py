"""The job script: equal to committed files, sound bash, and what each centre prescribes; one fact moves one line."""

import difflib
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from aitrain.launch.clusters import load
from aitrain.launch.job import Job
from aitrain.launch.render import TEMPLATES, render

from .specimens import NOBODY, PROFILES, all_jobs, job, profile, turns

EXPECTED = Path(__file__).parent / "expected"
JOBS = all_jobs()
SCRIPTS = sorted([*EXPECTED.glob("*.sbatch"), *TEMPLATES.glob("*.sbatch")])


@pytest.mark.parametrize("name", list(JOBS))
def test_scripts_equal_the_committed_ones(name: str) -> None:
    committed = (EXPECTED / f"{name}.sbatch").read_text(encoding="utf-8")
    assert render(JOBS[name]) == committed, "deliberate? then python tests/launch/write_expected.py, and read the diff"


def test_no_committed_script_is_left_over() -> None:
    assert {path.stem for path in EXPECTED.iterdir()} == set(JOBS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_bash(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "--severity=style", *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_slurm_reads_its_lines_as_they_stand(script: Path) -> None:
    """Slurm expands no variable, reads nothing behind the first command, and takes each flag once."""
    lines = script.read_text(encoding="utf-8").splitlines()
    asks = [line for line in lines if line.startswith("#SBATCH ")]
    assert asks and not any("$" in line or "`" in line for line in asks)
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(lines.index(line) < first_command for line in asks)
    flags = [line.split()[1].split("=")[0] for line in asks]
    assert len(flags) == len(set(flags)), "Slurm would take the last one"


@pytest.mark.parametrize("name", list(JOBS))
def test_every_script_saves_before_the_limit_and_goes_on_after_a_requeue(name: str) -> None:
    text = render(JOBS[name])
    notice = int(re.search(r"^#SBATCH --signal=USR1@(\d+)$", text, re.MULTILINE)[1])  # type: ignore[index]
    assert notice >= 120, "Slurm looks every 30 s, and up to 30 s early"
    goes_on = "NEXT=$(sbatch " if "\n#SBATCH --no-requeue\n" in text else "\n#SBATCH --requeue\n"
    assert goes_on in text and "\n#SBATCH --open-mode=append\n" in text
    assert text.count("--or-resume") == 1 and '"$RUN_DIR/run.yaml"' in text
    assert 'if [ "$code" -eq 75 ]; then' in text and text.rstrip().endswith('exit "$code"')
    assert "--kill-on-bad-exit=0" in text, "1 would turn the ranks' 75 into 143, so that nothing is requeued"


def steps(text: str) -> list[list[str]]:
    """Return the words of every srun in a script."""
    joined = text.replace("\\\n", " ")
    lines = [line.strip().removeprefix("timeout 30 ") for line in joined.splitlines()]
    return [shlex.split(line.split("|| ")[0]) for line in lines if line.startswith("srun ")]


@pytest.mark.parametrize("name", list(JOBS))
def test_one_srun_starts_all_ranks_with_their_cores(name: str) -> None:
    these, job = steps(render(JOBS[name])), JOBS[name]
    (ranks,) = [words for words in these if "aitrain" in words]
    assert f"--ntasks={job.ask.nodes * job.devices}" in ranks
    assert f"--ntasks-per-node={job.devices}" in ranks and f"--cpus-per-task={job.cores}" in ranks
    assert all("--ntasks-per-node=1" in words for words in these if words is not ranks)


def asked(text: str) -> dict[str, str]:
    """Return the flags of a script."""
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE)
    return dict(found)


def exported(text: str) -> dict[str, str]:
    """Return the variables that a script exports."""
    return {name: shlex.split(value)[0] for name, value in re.findall(r"^export (\w+)=(.+)$", text, re.MULTILINE)}


def test_snellius_as_surf_prescribes_it() -> None:
    """clusters.md 1: 16 of 64 cores for each of 4 GPUs, `--gpus-per-node`, exclusive, no memory flag, `exec --nv`."""
    text = render(job(profile("snellius_h100")))
    flags = asked(text)
    assert (flags["partition"], flags["ntasks-per-node"], flags["cpus-per-task"]) == ("gpu_h100", "4", "16")
    assert flags["gpus-per-node"] == "4" and "exclusive" in flags and "mem" not in flags and "gres" not in flags
    assert 4 * int(flags["cpus-per-task"]) == 64, "SURF's own example asks for half of the node"
    assert "IN_CONTAINER=(apptainer exec --nv " in text and "module load 2024 NCCL/2.22.3" in text
    assert "##SBATCH --ear=on\n" in text
    assert "NCCL_IB_HCA" not in text and "NCCL_SOCKET_IFNAME" not in text, "SURF publishes none"
    assert "cpu-bind" not in text
    variables = exported(text)
    assert variables["HF_HUB_OFFLINE"] == "1" and variables["WANDB_MODE"] == "offline"
    assert "NODE_LOCAL=/dev/shm/" in text, "$TMPDIR is on the parallel file system there"


def test_lumi_as_csc_prescribes_it() -> None:
    """clusters.md 2: 7 of 56 cores for each of 8 GCDs, `--mem=480G`, masks on whole nodes, no `--gpus-per-task`."""
    text = render(job(profile("lumi_g")))
    flags = asked(text)
    assert flags["account"] == "project_1" and flags["partition"] == "standard-g"
    assert (flags["ntasks-per-node"], flags["cpus-per-task"], flags["gpus-per-node"]) == ("8", "7", "8")
    assert flags["mem"] == "480G" and "gpus-per-task" not in text
    (ranks,) = [words for words in steps(text) if "aitrain" in words]
    (bind,) = [word for word in ranks if word.startswith("--cpu-bind=mask_cpu:")]
    masks = [int(mask, 16) for mask in bind.split(":")[1].split(",")]
    cores = [[bit for bit in range(64) if mask >> bit & 1] for mask in masks]
    assert [min(of_rank) for of_rank in cores] == [49, 57, 17, 25, 1, 9, 33, 41], "the centre's own order of GCDs"
    assert all(of_rank == list(range(of_rank[0], of_rank[0] + 7)) for of_rank in cores)
    assert all(of_rank[0] % 8 == 1 for of_rank in cores), "the first core of each chiplet is the system's"
    variables = exported(text)
    assert variables["NCCL_SOCKET_IFNAME"] == "hsn0,hsn1,hsn2,hsn3" and variables["NCCL_NET_GDR_LEVEL"] == "PHB"
    for name in ("MIOPEN_CUSTOM_CACHE_DIR", "MIOPEN_USER_DB_PATH", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert variables[name].startswith("$NODE_LOCAL/")
    assert "NODE_LOCAL=/tmp/" in text and "HSA_ENABLE_SDMA" not in text
    setup = ["module purge", "module use /appl/local/laifs/modules", "module load lumi-aif-singularity-bindings"]
    assert "\n".join(setup) in text and "IN_CONTAINER=(singularity run " in text and "--nv" not in text


def test_a_part_of_a_lumi_node_has_no_masks() -> None:
    text = render(turns()["turn-part-of-a-node"])
    assert "cpu-bind" not in text and asked(text)["mem"] == "122880M" and asked(text)["gpus-per-node"] == "2"


def test_leonardo_as_cineca_prescribes_it() -> None:
    """clusters.md 3: always a partition and an account, 8 of 32 cores for each of 4 GPUs, `--gres`, offline, an IP."""
    text = render(job(profile("leonardo")))
    flags = asked(text)
    assert flags["partition"] == "boost_usr_prod", "the default partition has no GPU"
    assert flags["account"] == "project_1"
    assert (flags["ntasks-per-node"], flags["cpus-per-task"], flags["gres"], flags["mem"]) == ("4", "8", "gpu:4", "0")
    variables = exported(text)
    assert variables["SRUN_CPUS_PER_TASK"] == "8"
    assert variables["HF_HUB_OFFLINE"] == variables["HF_DATASETS_OFFLINE"] == "1"
    assert variables["WANDB_MODE"] == "offline"
    assert not any(name.startswith("NCCL_") for name in variables), "CINECA publishes none"
    assert "module load profile/deeplrn cineca-ai" in text and "IN_CONTAINER=(singularity exec --nv " in text
    assert "getent ahostsv4" in text and "cpu-bind" not in text


CHANGES = [
    # profile, change in a file of the user's -> what the changed lines say, before and after
    ("lumi_g", {"partition": "small-g"}, ["#SBATCH --partition="]),
    ("lumi_g", {"request": {"memory_full_node": "400G"}}, ["#SBATCH --mem="]),
    ("lumi_g", {"request": {"cpu_bind_full_node": None}}, ["--wait=10"]),
    ("lumi_g", {"fabric": {"environment": {"NCCL_NET_GDR_LEVEL": "SYS"}}}, ["export NCCL_NET_GDR_LEVEL="]),
    ("lumi_g", {"fabric": {"environment_practice": {"A": "b"}}}, []),
    ("lumi_g", {"node": {"memory_gb": 1000.0}}, []),
    ("lumi_g", {"internet": {"compute": "closed"}}, []),
    ("lumi_g", {"software": {"container_command": "apptainer exec --rocm"}}, ["IN_CONTAINER=("]),
    ("lumi_g", {"storage": {"node_local": "/local"}}, ["NODE_LOCAL="]),
    ("lumi_g", {"billing": {"per_device_hour": 1.0}}, ["# Train on LUMI-G"]),
    ("lumi_g", {"title": "LUMI"}, ["# Train on LUMI"]),
    ("snellius_h100", {"request": {"device_flag": "gres"}}, ["gpu"]),
    ("snellius_h100", {"request": {"exclusive": False}}, ["#SBATCH --exclusive"]),
    ("snellius_h100", {"energy": {"sbatch": ["--ear=on"]}}, ["##SBATCH --ear-policy"]),
    ("snellius_h100", {"request": {"srun": ["--mpi=none"]}}, ["srun", "--wait=10", "srun"]),
    ("snellius_h100", {"software": {"modules": ["CUDA/13"]}}, ["module load CUDA/13"]),
    (
        "snellius_h100",
        {"node": {"cores_per_device": 12}},
        ["#SBATCH --cpus-per-task=", "export ", "--cpus-per-task="],
    ),
    ("jupiter", {"node": {"arch": "x86_64"}}, []),
    ("clariden", {"request": {"sbatch": []}}, ["#SBATCH --constraint="]),
]


@pytest.mark.parametrize(("name", "change", "lines"), CHANGES, ids=lambda value: str(value)[:40])
def test_one_fact_changes_the_lines_that_depend_on_it(
    name: str, change: dict, lines: list[str], tmp_path: Path
) -> None:
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump({"base": name, **change}))
    before = render(job(profile(name))).splitlines()
    after = render(job(load(str(tmp_path / "changed.yaml"), NOBODY).profile)).splitlines()
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    moved = [
        [line for line in [*before[old:old_end], *after[new:new_end]] if line and not line.startswith("# ---")]
        for tag, old, old_end, new, new_end in matcher.get_opcodes()
        if tag != "equal"
    ]
    assert len(moved) == len(lines), moved
    for block, word in zip(moved, lines, strict=True):
        assert block and all(word in line for line in block), moved


def test_every_fact_that_a_script_can_show_is_in_the_list_above() -> None:
    """A section of the profile that no change touches would be a section whose lines nobody watches."""
    touched = {key for _, change, _ in CHANGES for key in change}
    assert {"partition", "request", "fabric", "node", "software", "storage", "billing", "energy", "internet"} <= touched


def test_a_script_says_where_its_run_lives_and_how_to_go_on() -> None:
    text = render(JOBS["lumi_g"])
    assert "RUN_DIR=/shared/project_1/runs/first\n" in text
    assert "sbatch /shared/project_1/runs/first/job.sbatch" in text
    assert "#SBATCH --output=/shared/project_1/runs/first/logs/slurm-%j.out" in text


def test_words_of_the_user_are_quoted_for_bash() -> None:
    lumi = job(profile("lumi_g"))
    assert lumi.run is not None
    odd = "/shared/it's $HOME `id` here"
    text = render(replace(lumi, run=replace(lumi.run, directory=odd, container=f"{odd}/a.sif", binds=(odd,))))
    (line,) = [line for line in text.splitlines() if line.startswith("RUN_DIR=")]
    shown = subprocess.run(["bash", "-c", f'{line}; printf %s "$RUN_DIR"'], capture_output=True, text=True)
    assert shown.stdout == odd
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.parametrize("name", PROFILES)
def test_the_renderer_is_a_pure_function(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same job gives the same text, wherever and under whatever variables it is rendered."""
    first = render(Job(profile(name), JOBS[name].ask, JOBS[name].run))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AITRAIN_CACHE", "/elsewhere")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert render(Job(profile(name), JOBS[name].ask, JOBS[name].run)) == first


STUB = """#!/bin/bash
printf '%s\\n' "${0##*/} $(printf '<%s>' "$@")" >> "$SEEN"
case "${0##*/} $1" in
  "scontrol show") echo gcn7; echo gcn8 ;;
  "getent ahostsv4") echo "10.0.0.7 STREAM $2" ;;
esac
if [ "${0##*/}" = srun ] && [[ " $* " == *" aitrain "* ]]; then
  echo "address $MASTER_ADDR:$MASTER_PORT cores $OMP_NUM_THREADS export ${SLURM_EXPORT_ENV-}" >> "$SEEN"
  exit "$CODE"
fi
"""


class Node:
    """A machine where srun, scontrol and the like only note how they are called; bash and its builtins are real."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, folder / "seen"
        (folder / "bin").mkdir()
        for name in ("srun", "scontrol", "getent", "sleep", "module"):
            (folder / "bin" / name).write_text(STUB)
            (folder / "bin" / name).chmod(0o755)

    def run(self, text: str, code: int, *words: str) -> tuple[int, list[str], str]:
        """Run a job script whose ranks end with a code; return its own code, the calls it made, and what it said."""
        slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "gcn[7-8]", "SLURM_NNODES": "2", "SLURM_NTASKS": "8"}
        slurm |= {"SLURM_NTASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "16", "SLURM_JOB_NAME": "mine"}
        slurm |= {"SLURM_SUBMIT_DIR": str(self.folder), "SLURM_EXPORT_ENV": "NONE"}
        own = {"PATH": f"{self.folder}/bin:/usr/bin:/bin", "SEEN": str(self.seen), "CODE": str(code)}
        (self.folder / "job.sbatch").write_text(text)
        done = subprocess.run(
            ["bash", self.folder / "job.sbatch", *words], env=slurm | own, capture_output=True, text=True
        )
        return done.returncode, self.seen.read_text().splitlines() if self.seen.exists() else [], done.stderr


@pytest.mark.parametrize(
    ("code", "requeued"), [(0, False), (75, True), (137, True), (1, False), (2, False), (143, False)]
)
def test_only_code_75_puts_the_job_back_into_the_queue(tmp_path: Path, code: int, requeued: bool) -> None:
    ended, calls, _ = Node(tmp_path).run(render(job(profile("generic"))), code)
    assert ended == (0 if requeued else code)
    assert ("scontrol <requeue><4711>" in calls) is requeued
    kinds = [
        call.split("<")[0] + next((w for w in ("mkdir", "aitrain", "rm") if f"<{w}>" in call), "") for call in calls
    ]
    assert [kind for kind in kinds if kind.startswith("srun ")] == ["srun mkdir", "srun aitrain", "srun rm"]


def test_what_the_ranks_get(tmp_path: Path) -> None:
    _, calls, _ = Node(tmp_path).run(render(job(profile("jupiter"))), 0)
    (line,) = [call for call in calls if call.startswith("address ")]
    assert line == f"address 10.0.0.7:{10000 + 2 * 4711} cores 72 export ", (
        "an address, a port of the job, all variables"
    )
    assert "getent <ahostsv4><gcn7>" in calls
    (tmp_path / "other").mkdir()
    _, calls, _ = Node(tmp_path / "other").run(render(job(profile("juwels_booster"))), 0)
    assert "getent <ahostsv4><gcn7i>" in calls


def test_when_the_nodes_cannot_be_prepared_nothing_is_trained(tmp_path: Path) -> None:
    node = Node(tmp_path)
    (tmp_path / "bin/srun").write_text('#!/bin/bash\necho "srun $*" >> "$SEEN"\nexit 9\n')
    ended, calls, _ = node.run(render(job(profile("generic"))), 0)
    assert ended == 9 and not any("aitrain train" in call for call in calls)


def test_a_ready_script_hands_its_words_on_unchanged(tmp_path: Path) -> None:
    text = (TEMPLATES / "snellius_h100.sbatch").read_text()
    ended, calls, _ = Node(tmp_path).run(text, 0, "sft_lora", "data.path=my file.jsonl", "evaluate.prompts=['a $HOME']")
    (ranks,) = [call for call in calls if "<aitrain>" in call]
    assert ended == 0
    assert ranks.endswith(
        f"<{tmp_path}/.venv/bin/python><-m><aitrain><train><--or-resume><sft_lora><run.dir={tmp_path}/runs/mine-4711>"
        "<data.path=my file.jsonl><evaluate.prompts=['a $HOME']>"
    )
    assert "<--ntasks=8><--ntasks-per-node=4><--cpus-per-task=16>" in ranks
