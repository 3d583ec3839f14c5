"""A job as values: what a recipe on a cluster requests from Slurm and does on the nodes. No file, no clock, no
Slurm.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from aitrain.launch.ask import Ask, Run
from aitrain.launch.choices import Address, Container, DeviceFlag, Runtime, Tasks
from aitrain.launch.profile import Profile
from aitrain.launch.times import slurm_time

CACHES = (
    ("TRITON_CACHE_DIR", "triton"),
    ("TORCHINDUCTOR_CACHE_DIR", "inductor"),
    ("TORCH_EXTENSIONS_DIR", "torch_extensions"),
)
"""Caches of compilers: many small files, written by every rank at once."""

OFFLINE = (("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_OFFLINE", "1"), ("TRANSFORMERS_OFFLINE", "1"))
"""Variables that keep Hugging Face libraries from opening connections."""


@dataclass(frozen=True)
class Job:
    """All values of a job script; the template reads them."""

    profile: Profile
    ask: Ask
    run: Run | None = None
    """What is trained; `None` = a ready script, which is given after `sbatch`."""

    notes: tuple[str, ...] = field(default=())
    """Sentences for the head of the script."""

    @property
    def ready(self) -> bool:
        """Whether this is a ready script for any recipe."""
        return self.run is None

    @property
    def is_chain(self) -> bool:
        """Whether a job is followed by another one, because it cannot be requeued."""
        return not self.ready and not self.ask.requeue

    @property
    def devices(self) -> int:
        """Devices per node, and ranks per node."""
        return self.ask.devices

    @property
    def cores(self) -> int:
        """Cores per rank."""
        return self.profile.node.cores_per_device

    @property
    def device_word(self) -> str:
        """Name of one device."""
        return self.profile.device_word

    @property
    def full_nodes(self) -> bool:
        """Whether the job uses every device of its nodes."""
        return self.devices == self.profile.device.per_node

    @property
    def one_task_per_node(self) -> bool:
        """Whether the allocation counts one task per node."""
        return self.profile.request.tasks is Tasks.per_node

    @property
    def headline(self) -> list[str]:
        """Comment at the head of the script."""
        size = f"{counted(self.ask.nodes, 'node')} x {counted(self.devices, self.device_word)}"
        words = f"{size}, {slurm_time(self.ask.minutes)} at most"
        if self.run is not None:
            recipe = self.run.recipe.replace("\n", "\\n")
            return [f"Train on {self.profile.where}: {words}, {self.cost}.", f"Recipe: {recipe}", *self.notes]
        return [
            f"Train on {self.profile.where}: {words}.",
            "",
            f"  sbatch {self.usage_flags}{self.ask.name}.sbatch sft_lora model.path=MODEL_FOLDER data.path=chats.jsonl",
            "",
            "Options before the script's name go to Slurm and override the lines below, for instance --nodes=2",
            "or --time=12:00:00. After it come a recipe and its keys, as for `aitrain train`.",
            *self.notes,
        ]

    @property
    def signal_comment(self) -> str:
        """Comment on the signal."""
        return f"{self.ask.signal_s} s before the limit, Slurm tells every rank to finish its step, save and exit."

    @property
    def resource_flags(self) -> list[str]:
        """Flags for devices, memory and what else the site asks for."""
        request, device = self.profile.request, self.profile.device
        flags = []
        if request.device_flag is DeviceFlag.gpus_per_node:
            flags.append(f"--gpus-per-node={self.devices}")
        elif request.device_flag is DeviceFlag.gres:
            flags.append(f"--gres=gpu:{self.devices}")
        if self.full_nodes and request.memory_full_node is not None:
            flags.append(f"--mem={request.memory_full_node}")
        elif not self.full_nodes and request.memory_per_device_mb is not None:
            flags.append(f"--mem={request.memory_per_device_mb * self.devices}M")
        if self.full_nodes and request.exclusive and device.runtime is not Runtime.cpu:
            flags.append("--exclusive")
        return [*flags, *request.sbatch]

    @property
    def energy_flags(self) -> list[str]:
        """Flags that turn the measurement of energy on."""
        return self.profile.energy.sbatch

    @property
    def log(self) -> str:
        """Where the output of the job goes; its folder must exist when the job starts."""
        if self.run is None:
            return "slurm-%x-%j.out"
        if self.run.sweep is not None:
            return f"{self.run.sweep}/%a/logs/slurm-%A_%a.out"
        return f"{self.run.directory}/logs/slurm-%j.out"

    @property
    def venv_archive(self) -> str | None:
        """Archive that every node unpacks."""
        return self.run.venv_archive if self.run else None

    @property
    def software(self) -> list[str]:
        """Lines of shell that set up modules."""
        software = self.profile.software
        lines = list(software.setup)
        if software.modules:
            lines.append(f"module load {' '.join(software.modules)}")
        if self.run is not None and self.run.container is not None:
            lines += software.container_setup
        return lines

    @property
    def node_local(self) -> str:
        """Folder of node-local storage, as bash reads it."""
        place = self.profile.storage.node_local
        if not place.startswith("$"):
            return shlex.quote(place)
        variable, slash, rest = place[1:].partition("/")
        return f"${{{variable}:?}}{slash}{rest}"

    @property
    def caches(self) -> list[tuple[str, str]]:
        """Variable and folder of every cache."""
        found = list(CACHES)
        if self.run is None or not self.run.opens_hub:
            found.append(("HF_HOME", "huggingface"))
        return [*found, *((name, name.lower()) for name in self.profile.storage.cache_variables)]

    @property
    def offline(self) -> bool:
        """Whether the job opens no connection."""
        return self.run is None or not (self.run.opens_hub or self.run.opens_wandb)

    @property
    def connections(self) -> list[tuple[str, str]]:
        """Variables that keep libraries from opening connections, and where prepared data is kept."""
        if self.run is None:
            return [(name, f"${{{name}:-{value}}}") for name, value in (*OFFLINE, ("WANDB_MODE", "offline"))]
        found = [] if self.run.opens_hub else list(OFFLINE)
        if not self.run.opens_wandb:
            found.append(("WANDB_MODE", "offline"))
        if self.run.cache is not None:
            found.append(("AITRAIN_CACHE", shlex.quote(self.run.cache)))
        return found

    @property
    def fabric(self) -> list[tuple[str, str]]:
        """Network variables that the centre documents."""
        return list(self.profile.fabric.environment.items())

    @property
    def fabric_practice(self) -> list[tuple[str, str]]:
        """Undocumented network variables, if requested."""
        return list(self.profile.fabric.environment_practice.items()) if self.ask.practice_env else []

    @property
    def address_suffix(self) -> str | None:
        """Suffix of a node's name before its address is looked up; `None` = the name is the address."""
        return {Address.hostname: None, Address.ip: "", Address.ip_of_i: "i"}[self.profile.fabric.rendezvous]

    @property
    def cores_word(self) -> str:
        """Cores per rank, as bash reads them."""
        return "$SLURM_CPUS_PER_TASK" if self.ready and not self.one_task_per_node else str(self.cores)

    @property
    def bind_when_full(self) -> str | None:
        """CPU binding that a ready script uses only when the job has whole nodes."""
        masks = self.profile.request.cpu_bind_full_node
        return f"--cpu-bind={masks}" if self.ready and masks else None

    @property
    def srun_each_node(self) -> str:
        """First words of an srun that runs once on each node."""
        words = ["srun", '--nodes="$SLURM_NNODES"', '--ntasks="$SLURM_NNODES"', "--ntasks-per-node=1"]
        return " ".join([*words, *self.profile.request.srun])

    @property
    def srun_ranks(self) -> str:
        """First words of the srun that starts all ranks."""
        if self.ready and not self.one_task_per_node:
            ranks = ['--ntasks="$SLURM_NTASKS"', '--ntasks-per-node="$SLURM_NTASKS_PER_NODE"']
            ranks.append('--cpus-per-task="$SLURM_CPUS_PER_TASK"')
        else:
            ranks = [f"--ntasks={self.ask.nodes * self.devices}", f"--ntasks-per-node={self.devices}"]
            ranks.append(f"--cpus-per-task={self.cores}")
        request = self.profile.request
        more = ["--kill-on-bad-exit=0", "--wait=10"]
        if self.bind_when_full:
            more.append('"${BIND[@]}"')
        elif self.full_nodes and request.cpu_bind_full_node:
            more.append(f"--cpu-bind={request.cpu_bind_full_node}")
        elif request.cpu_bind:
            more.append(f"--cpu-bind={request.cpu_bind}")
        if self.profile.software.container is Container.edf:
            if self.ready:
                more.append('${CONTAINER:+"--environment=$CONTAINER"}')
            elif self.run is not None and self.run.container is not None:
                more.append(shlex.quote(f"--environment={self.run.container}"))
        return " \\\n  ".join([" ".join(["srun", '--nodes="$SLURM_NNODES"', *ranks]), " ".join([*more, *request.srun])])

    @property
    def container_lines(self) -> list[str]:
        """Lines that say how programs are started in the container."""
        software = self.profile.software
        if software.container is Container.none or software.container is Container.edf:
            return []
        command = software.container_command or ""
        if self.run is None:
            inside = [f"  {line}" for line in software.container_setup]
            start = f'  IN_CONTAINER=({command} --bind "$SLURM_SUBMIT_DIR" --bind "$NODE_LOCAL" "$CONTAINER")'
            more = f"# More folders: export {software.container.name.upper()}_BIND=/folder,/folder before sbatch."
            return [more, "IN_CONTAINER=()", 'if [ -n "$CONTAINER" ]; then', *inside, start, "fi"]
        if self.run.container is None:
            return []
        binds = " ".join(f"--bind {shlex.quote(folder)}" for folder in self.run.binds)
        return [f'IN_CONTAINER=({command} {binds} --bind "$NODE_LOCAL" {shlex.quote(self.run.container)})']

    @property
    def srun_once(self) -> str:
        """First words of an srun that runs aitrain once."""
        words = ["srun", "--nodes=1", "--ntasks=1"]
        if self.profile.software.container is Container.edf and self.run is not None and self.run.container is not None:
            words.append(shlex.quote(f"--environment={self.run.container}"))
        start = ['"${IN_CONTAINER[@]}"'] if self.container_lines else []
        return " ".join([*words, *self.profile.request.srun, *start, '"$PYTHON" -m aitrain'])

    @property
    def program(self) -> list[str]:
        """The program that every rank runs, in lines."""
        start = ['"${IN_CONTAINER[@]}"'] if self.container_lines else []
        if self.run is None:
            return [*start, '"$PYTHON" -m aitrain train --or-resume "$1" run.dir="$RUN_DIR" "${@:2}"']
        return [*start, '"$PYTHON" -m aitrain train --or-resume "$RUN_DIR/run.yaml"']

    @property
    def usage_flags(self) -> str:
        """Flags of sbatch that a user of a ready script must give."""
        flags = []
        if self.profile.account_required and not self.ask.account:
            flags.append("--account=ACCOUNT ")
        if self.profile.qos_required and not self.ask.qos:
            flags.append("--qos=QOS ")
        return "".join(flags)

    @property
    def again(self) -> str:
        """Arguments for sbatch to continue by hand."""
        if self.run is not None and self.run.sweep is not None:
            return f"--array=$SLURM_ARRAY_TASK_ID {self.run.sweep}/job.sbatch"
        return (
            f"{self.run.directory}/job.sbatch" if self.run else "the same words, after export AITRAIN_RUN_DIR=$RUN_DIR"
        )

    @property
    def device_hours(self) -> float:
        """Most device-hours that the job, or the sweep, can take without requeues."""
        return self.ask.nodes * self.devices * self.ask.minutes / 60 * (1 if self.run is None else self.run.runs)

    @property
    def cost(self) -> str:
        """Highest cost of one run of the job, in device-hours and in the site's unit."""
        hours = amount(self.device_hours, f"{self.device_word}-hour")
        billing = self.profile.billing
        if billing.per_device_hour is None or billing.unit is None:
            return hours
        return f"{hours} = {amount(self.device_hours * billing.per_device_hour, billing.unit)}"


def counted(number: int, word: str) -> str:
    """Return a number with its noun, in the plural if needed.

    Args:
        number: How many.
        word: What, in the singular.
    """
    return f"{number} {word}{'' if number == 1 else 's'}"


def amount(number: float, unit: str) -> str:
    """Return an amount with its unit, in the plural if needed; abbreviations have none.

    Args:
        number: How much; shown with at most two decimals.
        unit: Of what, in the singular.
    """
    shown = f"{round(number, 2):,.10g}"
    return f"{shown} {unit}{'' if shown == '1' or unit.isupper() else 's'}"


def smallest_set(folders: Sequence[str]) -> tuple[str, ...]:
    """Return folders without those that lie inside another one, sorted.

    Args:
        folders: Absolute paths.
    """
    kept: list[str] = []
    for folder in sorted({folder.rstrip("/") or "/" for folder in folders}):
        if not any(folder == other or folder.startswith(f"{other.rstrip('/')}/") for other in kept):
            kept.append(folder)
    return tuple(kept)
