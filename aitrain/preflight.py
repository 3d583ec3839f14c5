"""Checks of the machine, the files and the environment that run before anything is loaded. No torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import netrc
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from aitrain.config import OPTION_OF, RunConfig
from aitrain.config.adapter import Qlora
from aitrain.config.custom import UserClass
from aitrain.config.data import Sequences
from aitrain.config.logger import Tensorboard, Wandb, WandbMode
from aitrain.config.optim import AdamW8bit, FusedStep
from aitrain.config.task import Preference, Sft
from aitrain.config.trainer import Accelerator
from aitrain.config.values import nearest
from aitrain.dist.ranks import Ranks, detect
from aitrain.errors import AitrainError, DataError, RecipeError
from aitrain.io.home import user_path
from aitrain.models.chat_templates import TEMPLATES, choice, named
from aitrain.models.licence import licence_faults, told_licence
from aitrain.tasks.data_files import data_faults

if TYPE_CHECKING:
    from aitrain.models.folder import ModelFacts

SMALLEST_DISK_GB = 1.0
RANKS_PER_CORE = 4  # a few ranks on one core are slow but right, and tests of many ranks live on that


@dataclass(frozen=True)
class Machine:
    """Hardware and software of this node."""

    gpus: int
    """GPUs that this process may use."""

    torch_sees_gpus: bool
    """Whether the installed torch was built for GPUs."""

    cores: int | None = None
    """CPU cores that this process may use; `None` = not known, so they are not checked."""

    @property
    def usable_gpus(self) -> int:
        """GPUs that a run can really use."""
        return self.gpus if self.torch_sees_gpus else 0


def machine(environment: Mapping[str, str], root: Path = Path("/")) -> Machine:
    """Detect the hardware of this node without loading torch.

    Args:
        environment: Variables; those that hide GPUs are respected.
        root: Root of the file system.

    Source: https://docs.nvidia.com/cuda/cuda-programming-guide, `CUDA_VISIBLE_DEVICES`;
    https://rocm.docs.amd.com, "GPU isolation techniques"; the kernel's `drivers/gpu/drm/amd/amdkfd/kfd_topology.c`.
    """
    nvidia = len([path for path in (root / "dev").glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()])
    if not nvidia and (root / "dev/dxg").exists() and (root / "usr/lib/wsl/lib/libcuda.so.1").exists():
        nvidia = 1  # the Windows subsystem for Linux has no device file per GPU
    amd = sum(map(_is_gpu_node, (root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties")))
    hiding = (
        ("CUDA_VISIBLE_DEVICES",) if nvidia else ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    )
    gpus = nvidia or amd
    for name in hiding:
        if name in environment:
            gpus = min(gpus, _visible(environment[name]))
    try:
        built_for_gpus = not importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        built_for_gpus = False
    return Machine(gpus, built_for_gpus, len(os.sched_getaffinity(0)))


def _is_gpu_node(properties: Path) -> bool:
    """Return whether a node of the AMD topology is a GPU: CPUs have no SIMD units."""
    try:
        lines = properties.read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("simd_count ") and line.split()[1] != "0" for line in lines)


def _visible(listed: str) -> int:
    """Return how many devices a list names; an invalid entry ends it."""
    count = 0
    for entry in listed.split(","):
        if not entry.strip() or entry.strip().startswith("-"):
            break
        count += 1
    return count


def usable_devices(config: RunConfig, environment: Mapping[str, str] | None = None, here: Machine | None = None) -> int:
    """Return how many ranks to start on this node: `trainer.devices`, else all GPUs, else 1.

    Args:
        config: A checked configuration.
        environment: Variables; `os.environ` when absent.
        here: Hardware of this node; detected when absent.
    """
    if config.trainer.devices is not None:
        return config.trainer.devices
    here = machine(os.environ if environment is None else environment) if here is None else here
    return max(1, here.usable_gpus) if config.trainer.accelerator is not Accelerator.cpu else 1


def machine_faults(
    config: RunConfig,
    environment: Mapping[str, str] | None = None,
    here: Machine | None = None,
    ranks: Ranks | None = None,
    packages: bool = True,
) -> list[str]:
    """Return what a machine and an environment do not allow, one sentence each.

    Args:
        config: A checked configuration.
        environment: Variables; `os.environ` when absent.
        here: Hardware of the node that will train; that of this node when absent.
        ranks: The ranks that will train; read from the environment when absent.
        packages: Whether the packages of this Python are those that will train.
    """
    env = os.environ if environment is None else environment
    here = machine(env) if here is None else here
    try:
        ranks = detect(env) if ranks is None else ranks
    except AitrainError as error:
        return [str(error)]
    return [
        *_device_faults(config, here, ranks),
        *_rank_faults(config, here, ranks),
        *(_package_faults(config) if packages else ()),
        *_wandb_faults(config, env),
    ]


def _device_faults(config: RunConfig, here: Machine, ranks: Ranks) -> Iterator[str]:
    accelerator, devices = config.trainer.accelerator, config.trainer.devices
    reason = "this machine has no visible GPU" if not here.gpus else "the installed torch is a CPU build"
    if accelerator is Accelerator.cuda and not here.usable_gpus:
        yield f"trainer.accelerator=cuda, but {reason}: write trainer.accelerator=cpu trainer.precision=fp32"
    elif accelerator is not Accelerator.cpu and here.usable_gpus:
        wanted = max(devices or 1, ranks.local_world)
        # a launcher may show each rank its own GPU only; that two do not share one is found when they meet
        own = ranks.launcher in ("torchrun", "srun") and here.usable_gpus == 1
        if wanted > here.usable_gpus and not own:
            key = "trainer.devices" if ranks.launcher == "none" else f"{ranks.launcher} ranks on this node"
            there = here.usable_gpus
            yield f"{key}={wanted}, but {'1 GPU is' if there == 1 else f'{there} GPUs are'} here: use at most {there}"
    elif accelerator is Accelerator.auto:
        if isinstance(config.adapter, Qlora):
            yield f"adapter=qlora needs a GPU (4-bit kernels), but {reason}: write adapter=lora"
        if isinstance(config.optim, AdamW8bit):
            yield f"optim=adamw_8bit needs a GPU, but {reason}: write optim=adamw"
        if config.model.attention.name == "flash_attention_2":
            yield f"model.attention=flash_attention_2 needs a GPU, but {reason}: write model.attention=sdpa"
    on_cpu = accelerator is Accelerator.cpu or not here.usable_gpus
    few = here.cores is not None and (devices or 1) > RANKS_PER_CORE * here.cores
    if on_cpu and accelerator is not Accelerator.cuda and few:
        yield f"trainer.devices={devices}, but there are {here.cores} CPU cores here: use at most {here.cores}"


def _rank_faults(config: RunConfig, here: Machine, ranks: Ranks) -> Iterator[str]:
    """Yield disagreement with the launcher, and a global batch that does not split over the ranks there really are."""
    devices, nodes = config.trainer.devices, config.trainer.nodes
    if ranks.launcher == "none":
        on_gpu = config.trainer.accelerator is not Accelerator.cpu and here.usable_gpus
        if nodes is not None and nodes > 1:
            yield f"trainer.nodes={nodes}, but only this node was started: start with torchrun or srun, or leave it out"
        if devices is None and on_gpu:
            yield from config.batch_faults(here.usable_gpus, nodes)
        return
    if devices is not None and devices != ranks.local_world:
        yield (
            f"trainer.devices={devices}, but {ranks.launcher} started {ranks.local_world} ranks on this node: "
            f"write trainer.devices={ranks.local_world}, or leave it out"
        )
    if nodes is not None and nodes != ranks.nodes:
        yield (
            f"trainer.nodes={nodes}, but {ranks.launcher} started {ranks.nodes} nodes: "
            f"write trainer.nodes={ranks.nodes}, or leave it out"
        )
    if (devices, nodes) != (ranks.local_world, ranks.nodes):
        yield from config.batch_faults(ranks.local_world, ranks.nodes)


def _package_faults(config: RunConfig) -> Iterator[str]:
    for group, kind, package, extra in (
        ("logger", Tensorboard, "tensorboard", "tensorboard"),
        ("adapter", Qlora, "bitsandbytes", "qlora"),
    ):
        if isinstance(getattr(config, group), kind) and importlib.util.find_spec(package) is None:
            yield f"{group}={OPTION_OF[kind]} needs {package}, which is not installed: pip install 'aitrain[{extra}]'"
    foreign = isinstance(config.optim, AdamW8bit) and config.optim.fused is FusedStep.never
    if foreign and importlib.util.find_spec("bitsandbytes") is None:
        yield "optim.fused=never needs bitsandbytes for adamw_8bit: pip install 'aitrain[qlora]', or leave it out"
    if config.model.attention.name == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        yield "model.attention=flash_attention_2 needs flash-attn, which is not installed: write model.attention=sdpa"


def _wandb_faults(config: RunConfig, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the fault of a wandb that may go online but has no key to do it with."""
    if not isinstance(config.logger, Wandb) or config.logger.mode is not WandbMode.online:
        return
    if environment.get("WANDB_MODE", "online") not in ("online", "run"):
        yield (
            f"logger.mode=online, but WANDB_MODE={environment['WANDB_MODE']} in the environment says otherwise: "
            "unset WANDB_MODE or write logger.mode=offline"
        )
    if environment.get("WANDB_API_KEY"):
        return
    host = environment.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0].split(":")[0]
    file = Path(environment.get("NETRC") or user_path(environment.get("HOME", "~")) / ".netrc")
    try:
        if file.is_file() and netrc.netrc(str(file)).authenticators(host):
            return
    except (netrc.NetrcParseError, OSError) as error:
        yield f"logger.mode=online, but {file} cannot be read for the key of {host}: {error}"
        return
    yield f"logger.mode=online has no key for {host}: set WANDB_API_KEY, run `wandb login`, or use logger.mode=offline"


def place_faults(config: RunConfig) -> list[str]:
    """Return why a new run cannot be written where the recipe says, one sentence each.

    Args:
        config: A checked configuration.
    """
    where = Path(config.run.dir or "runs")
    faults = []
    if config.run.dir is not None and (where.exists() or where.is_symlink()):
        faults.append(
            f"run.dir={where} exists already: choose a new one, or continue that run with `aitrain resume {where}`"
        )
    return faults + room_faults(config)


def room_faults(config: RunConfig) -> list[str]:
    """Return which folders of a run cannot be created, cannot be written or have no space left, one sentence each.

    Args:
        config: A checked configuration.
    """
    faults = []
    for key, folder in (("run.dir", config.run.dir or "runs"), ("checkpoint.path", config.checkpoint.path)):
        if folder is None:
            continue
        parent = user_path(folder).absolute()
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            faults.append(f"{key}={folder} cannot be created: {parent} is a file")
        elif not os.access(parent, os.W_OK | os.X_OK):
            faults.append(f"{key}={folder}: you have no write permission for {parent}; choose another folder")
        elif (free := shutil.disk_usage(parent).free / 1e9) < SMALLEST_DISK_GB:
            faults.append(f"{key}={folder}: the disk has {free:.2f} GB left, at least {SMALLEST_DISK_GB:g} are needed")
    return faults


def user_code_faults(config: RunConfig) -> list[str]:
    """Return what is wrong with the user's Python files, one sentence each; they are run to find out.

    Args:
        config: A checked configuration.
    """
    groups = [getattr(config, field.name) for field in fields(config)]
    if not config.trainer.callbacks and not any(isinstance(group, UserClass) for group in groups):
        return []
    from aitrain.tasks.user_code import faults  # loads torch, as such files do

    return faults(config)


def look_at_model(config: RunConfig) -> ModelFacts:
    """Return what is known about the model that a recipe starts from; None if its task brings its own.

    Args:
        config: A checked configuration.
    """
    from aitrain.models.folder import Kind, ModelFacts, inspect

    wanted = config.task.model_kind
    return ModelFacts("", Kind.folder) if wanted is None else inspect(config.model, wanted)


def model_faults(config: RunConfig, found: ModelFacts | None = None) -> list[str]:
    """Return why the model cannot be used as asked, one sentence each.

    Args:
        config: A checked configuration.
        found: What is known about the model; looked at when absent.
    """
    faults: list[str] = []
    if config.task.model_kind is None:
        return faults
    template = config.model.chat_template
    if template is not None and named(template) is None and not user_path(template).is_file():
        guess = nearest(template, TEMPLATES)
        hint = f"did you mean {guess}?" if guess else "check the path"
        faults.append(f"model.chat_template={template} is neither a known template ({choice()}) nor a file: {hint}")
    try:
        found = look_at_model(config) if found is None else found
    except AitrainError as error:
        return [*faults, *str(error).splitlines()]
    faults += found.faults
    known = not found.faults and found.kind.name != "hub"  # of a name on a hub nothing is known yet
    if known:
        licence = told_licence(config.model.path, found.licence)
        faults += licence_faults(str(config.model.path), licence, config.run.purpose)
    talks = isinstance(config.task, (Sft, Preference))
    if known and talks and config.model.chat_template is None and not found.has_chat_template:
        faults.append(
            f"model.path={config.model.path} has no chat template (it is a base model): choose one with "
            f"model.chat_template=NAME ({choice()}; chatml if in doubt), or use an instruction-tuned model"
        )
    longest = config.data.sequence_tokens if isinstance(config.data, Sequences) else 0
    if found.context_tokens is not None and longest > found.context_tokens:
        faults.append(
            f"data.sequence_tokens={longest} is longer than the model's context: "
            f"write data.sequence_tokens={found.context_tokens} or less"
        )
    return faults


def refuse_faults(config: RunConfig, new_run: bool = True, environment: Mapping[str, str] | None = None) -> None:
    """Refuse a run that cannot work here, with all reasons.

    Args:
        config: A checked configuration.
        new_run: Whether a run directory is about to be made; false when a run is resumed.
        environment: Variables; `os.environ` when absent.

    Raises:
        RecipeError: The machine, the model or the place does not allow it (exit code 2); data faults are told too.
        DataError: Only the data is at fault (exit code 3).
    """
    faults = [*machine_faults(config, environment), *user_code_faults(config), *model_faults(config)]
    faults += place_faults(config) if new_run else []
    data = data_faults(config)
    if faults:
        raise RecipeError(list(dict.fromkeys([*faults, *data])))
    if data:
        raise DataError("\n".join(data))
