"""The preflight: what this machine, these files and this environment do not allow."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from aitrain import preflight
from aitrain.config import RunConfig
from aitrain.dist.ranks import Ranks
from aitrain.errors import DataError, RecipeError
from aitrain.preflight import Machine, data_faults, machine, machine_faults, place_faults, refuse_faults, usable_devices
from aitrain.recipe import compose

CPU, FOUR = Machine(0, True, 2), Machine(4, True, 2)
GIVEN = ["model.path=m", "data.path=d.jsonl"]


def config(*words: str) -> RunConfig:
    return compose("sft_full", [*GIVEN, *words])


def node(root: Path, *, nvidia: int = 0, amd: tuple[int, ...] = ()) -> Path:
    """Lay out the device files of a node."""
    (root / "dev").mkdir()
    for name in ["nvidiactl", "nvidia-uvm", *[f"nvidia{i}" for i in range(nvidia)]]:
        (root / "dev" / name).touch()
    for number, simds in enumerate(amd):
        folder = root / "sys/class/kfd/kfd/topology/nodes" / str(number)
        folder.mkdir(parents=True)
        (folder / "properties").write_text(f"cpu_cores_count 8\nsimd_count {simds}\nmem_banks_count 1\n")
    return root


@pytest.mark.parametrize(
    ("layout", "environment", "gpus"),
    [
        ({}, {}, 0),
        ({"nvidia": 4}, {}, 4),
        ({"nvidia": 4}, {"CUDA_VISIBLE_DEVICES": "0,2"}, 2),
        ({"nvidia": 4}, {"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"nvidia": 4}, {"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"nvidia": 4}, {"CUDA_VISIBLE_DEVICES": "0,-1,1"}, 1),
        ({"nvidia": 2}, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 2),
        ({"nvidia": 4}, {"ROCR_VISIBLE_DEVICES": "0"}, 4),
        ({"amd": (0, 0, 304, 304)}, {}, 2),
        ({"amd": (0, 304, 304)}, {"ROCR_VISIBLE_DEVICES": "0"}, 1),
        ({"amd": (0, 304, 304)}, {"HIP_VISIBLE_DEVICES": ""}, 0),
    ],
)
def test_gpus_are_counted_without_torch(tmp_path: Path, layout: dict, environment: dict, gpus: int) -> None:
    assert machine(environment, node(tmp_path, **layout)).gpus == gpus


def test_a_torch_built_for_cpus_uses_no_gpu() -> None:
    assert Machine(4, False).usable_gpus == 0 and FOUR.usable_gpus == 4


@pytest.mark.parametrize(
    ("words", "here", "count"),
    [([], CPU, 1), ([], FOUR, 4), (["trainer.devices=2"], FOUR, 2), (["trainer.accelerator=cpu"], FOUR, 1)],
)
def test_ranks_to_start(words: list[str], here: Machine, count: int) -> None:
    assert usable_devices(config(*words), {}, here) == count


TORCHRUN = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}


@pytest.mark.parametrize(
    ("words", "environment", "here", "says"),
    [
        (["trainer.accelerator=cuda"], {}, CPU, "trainer.accelerator=cuda, but this machine has no visible GPU"),
        (["trainer.accelerator=cuda"], {}, Machine(4, False), "the installed torch is a CPU build"),
        (["trainer.devices=8"], {}, FOUR, "trainer.devices=8, but 4 GPUs are here: use at most 4"),
        (
            ["trainer.devices=1024", "trainer.global_batch_samples=1024"],
            {},
            CPU,
            "trainer.devices=1024, but there are",
        ),
        ([], SRUN | {"SLURM_STEP_NUM_TASKS": "16"}, FOUR, "srun ranks on this node=8, but 4 GPUs are here"),
        (["adapter=qlora"], {}, CPU, "adapter=qlora needs a GPU (4-bit kernels), but this machine has no visible GPU"),
        (["optim=adamw_8bit"], {}, CPU, "optim=adamw_8bit needs a GPU"),
        (["model.attention=flash_attention_2"], {}, CPU, "model.attention=flash_attention_2 needs a GPU"),
        (["trainer.global_batch_samples=6"], {}, FOUR, "is not a multiple of 4 devices x 1 per device: write 4 or 8"),
        (["trainer.global_batch_samples=6"], TORCHRUN, CPU, "is not a multiple of 4 devices"),
        (["trainer.devices=4"], TORCHRUN, CPU, "trainer.devices=4, but torchrun started 2 ranks on this node"),
        (["trainer.nodes=4"], TORCHRUN, CPU, "trainer.nodes=4, but torchrun started 2 nodes"),
        (["trainer.nodes=4"], SRUN, CPU, "trainer.nodes=4, but srun started 2 nodes"),
        (["trainer.nodes=2"], {}, CPU, "trainer.nodes=2, but only this node was started"),
        ([], TORCHRUN | {"WORLD_SIZE": "3"}, CPU, "torchrun started 3 ranks with 2 on this node"),
        ([], TORCHRUN | {"WORLD_SIZE": "x"}, CPU, "WORLD_SIZE=x is not a whole number"),
    ],
)
def test_machine_and_launcher_are_compared_with_the_recipe(
    words: list[str], environment: dict, here: Machine, says: str
) -> None:
    # packages of extras may or may not be installed here; their own test stands below
    found = [fault for fault in machine_faults(config(*words), environment, here) if "not installed" not in fault]
    assert len(found) == 1 and says in found[0], found


@pytest.mark.parametrize(
    ("words", "environment", "here"),
    [
        ([], {}, CPU),
        ([], {}, FOUR),
        (["trainer.devices=2", "trainer.nodes=2"], TORCHRUN, CPU),
        (["trainer.devices=4"], SRUN, FOUR),
        (["trainer.precision=bf16", "trainer.accelerator=cpu"], {}, FOUR),
        (["trainer.devices=2"], {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, CPU),
    ],
)
def test_what_fits_is_not_refused(words: list[str], environment: dict, here: Machine) -> None:
    assert machine_faults(config(*words), environment, here) == []


@pytest.mark.parametrize(
    ("word", "package", "extra"),
    [("logger=tensorboard", "tensorboard", "tensorboard"), ("adapter=qlora", "bitsandbytes", "qlora")],
)
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, word: str, package: str, extra: str) -> None:
    absent = {package}
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None if name in absent else object())
    assert machine_faults(config(word), {}, FOUR) == [
        f"{word} needs {package}, which is not installed: pip install 'aitrain[{extra}]'"
    ]
    absent.clear()
    assert machine_faults(config(word), {}, FOUR) == []


def test_eight_bits_need_bitsandbytes_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"bitsandbytes": None}
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: found.get(name, object()))
    assert machine_faults(config("optim=adamw_8bit"), {}, FOUR) == []
    (fault,) = machine_faults(config("optim=adamw_8bit", "optim.fused=never"), {}, FOUR)
    assert fault.startswith("optim.fused=never needs bitsandbytes for adamw_8bit: pip install 'aitrain[qlora]'")


def test_wandb_online_needs_a_key(tmp_path: Path) -> None:
    online, home = config("logger=wandb", "logger.mode=online"), {"HOME": str(tmp_path)}
    (fault,) = machine_faults(online, home, CPU)
    assert fault.startswith("logger.mode=online has no key for api.wandb.ai: set WANDB_API_KEY")
    assert machine_faults(online, home | {"WANDB_API_KEY": "secret"}, CPU) == []
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert machine_faults(online, home, CPU) == []
    (fault,) = machine_faults(online, home | {"WANDB_BASE_URL": "https://wandb.example.org:8080"}, CPU)
    assert "no key for wandb.example.org:" in fault and "secret" not in fault
    (fault,) = machine_faults(online, home | {"WANDB_MODE": "offline"}, CPU)
    assert "WANDB_MODE=offline" in fault
    assert machine_faults(config("logger=wandb"), {"HOME": str(tmp_path / "none")}, CPU) == []


def test_a_place_that_cannot_take_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = config(f"run.dir={tmp_path}")
    assert place_faults(taken) == [
        f"run.dir={tmp_path} exists already: choose a new one, or continue that run with `aitrain resume {tmp_path}`"
    ]
    (tmp_path / "file").touch()
    (fault,) = place_faults(config(f"run.dir={tmp_path}/file/run"))
    assert fault.endswith("file is a file")
    assert place_faults(config(f"run.dir={tmp_path}/new/run", f"checkpoint.path={tmp_path}")) == []
    monkeypatch.setattr(preflight, "SMALLEST_DISK_GB", 1e9)
    (fault,) = place_faults(config(f"run.dir={tmp_path}/new"))
    assert "GB left, at least 1e+09 are needed" in fault


def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        (fault,) = place_faults(config(f"run.dir={tmp_path}/run"))
        assert f"{tmp_path} is not writable for you" in fault
    finally:
        tmp_path.chmod(0o700)


def test_data_files_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "train.xls").write_text("x")
    (tmp_path / "train.txt").write_text("x")

    (tmp_path / "none").mkdir()

    def faults(name: str, *words: str) -> str:
        return "\n".join(data_faults(config(f"data.path={tmp_path / name}", *words)))

    assert faults("train.jsonl") == ""
    assert faults("trian.jsonl").endswith(f"does not exist: did you mean {tmp_path}/train.jsonl?")
    assert faults("no/train.jsonl").endswith(f"does not exist: there is no folder {tmp_path}/no")
    assert f"data.path={tmp_path / 'none'}: no file in this folder is supported" in faults("none")
    assert faults("empty.jsonl").endswith("is empty: it needs at least one record")
    assert "has an unsupported file type (supported: .jsonl, .jsonl.gz, .json, .parquet, .csv" in faults("train.xls")
    assert faults("train.xls").endswith("save it as .xlsx")
    assert faults("train.txt").endswith("for plain text write task=pretrain")
    assert faults("train.txt", "task=pretrain", "data=text") == ""
    assert faults("train.jsonl", "data.validation_path=none.jsonl").startswith(
        "data.validation_path=none.jsonl does not"
    )
    assert data_faults(replace(config(), data=replace(config().data, path=" "))) == [
        "data.path is empty: write the path of a file"
    ]


def test_every_reason_is_told_at_once_and_the_exit_code_says_whose_they_are(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("{}\n")
    words = ["model.path=asset:tiny-llama", f"run.dir={tmp_path}/run", "trainer.accelerator=cpu"]
    good = compose("sft_full", [f"data.path={tmp_path}/d.jsonl", *words, "data.sequence_tokens=64"])
    refuse_faults(good, environment={})
    with pytest.raises(DataError, match="none.jsonl does not exist") as data_only:
        refuse_faults(replace(good, data=replace(good.data, path="none.jsonl")), environment={})
    assert data_only.value.exit_code == 3
    bad = compose("sft_full", ["data.path=none.jsonl", "model.path=./none", f"run.dir={tmp_path}", "trainer.nodes=2"])
    with pytest.raises(RecipeError) as caught:
        refuse_faults(bad, environment={})
    found = str(caught.value)
    assert caught.value.exit_code == 2
    assert all(word in found for word in ("none.jsonl", "./none", "exists already", "trainer.nodes=2")), found
    with pytest.raises(RecipeError) as caught:
        refuse_faults(bad, new_run=False, environment={})
    assert "exists already" not in str(caught.value)


def test_a_sequence_longer_than_the_model_allows(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("{}\n")
    words = ["model.path=asset:tiny-llama", f"data.path={tmp_path}/d.jsonl", "data.sequence_tokens=1000000"]
    with pytest.raises(RecipeError, match="data.sequence_tokens=1000000 is longer than the model's context: write"):
        refuse_faults(compose("sft_full", words), environment={})


def test_a_chat_template_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("{}\n")
    words = ["model.path=asset:tiny-llama", f"data.path={tmp_path}/d.jsonl", "model.chat_template=none.jinja"]
    with pytest.raises(
        RecipeError,
        match="model.chat_template=none.jinja is neither a known template .chatml, llama3, .* nor a file: check",
    ):
        refuse_faults(compose("sft_full", [*words, "data.sequence_tokens=64"]), environment={})


def srun(tasks: int) -> dict[str, str]:
    names = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_NUM_NODES": "1"}
    return {**names, "SLURM_STEP_NODELIST": "n1"}


def test_a_rank_that_sees_only_its_own_gpu_is_right() -> None:
    """`srun --ntasks=4 --gpus-per-task=1`: the launcher's word counts."""
    config = compose("sft_lora", ["model.path=m", "data.path=d"])
    assert machine_faults(config, srun(4), Machine(1, True, 8)) == []
    [fault] = machine_faults(config, srun(4), Machine(2, True, 8))
    assert "srun ranks on this node=4, but 2 GPUs are here" in fault


@pytest.mark.parametrize("count", [1, 2])
def test_torchrun_says_how_many_ranks_there_are(count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a node of eight GPUs `torchrun --nproc-per-node 1` means one rank, and not eight."""
    from aitrain.dist import group
    from aitrain.trainer import fit, start

    seen: list[Ranks] = []

    def trained(directory: object, ranks: Ranks, *_: object) -> int:
        seen.append(ranks)
        return 0

    for name, value in {"RANK": "0", "WORLD_SIZE": count, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": count}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("aitrain.preflight.machine", lambda *_: Machine(8, True, 16))
    monkeypatch.setattr(start, "run_ranks", lambda *_: pytest.fail("ranks were started"))
    monkeypatch.setattr(start, "_accelerator_of", lambda ranks: "cpu")
    monkeypatch.setattr(fit, "fit", trained)
    monkeypatch.setattr(group, "Group", lambda ranks, accelerator: Alone(ranks))
    words = ["model.path=asset:tiny-llama", "data.path=asset:verses-en-nl/train.jsonl", "data.sequence_tokens=256"]
    assert start.train("sft_full", [*words, f"run.dir={tmp_path}/run"]) == 0
    assert [(ranks.world, ranks.launcher) for ranks in seen] == [(count, "torchrun")]


class Alone:
    """A group of which only the first rank is here."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def from_first(self, value: object) -> object:
        return value

    def close(self) -> None:
        return
