"""Capacity of the devices: micro-batch from memory, floating-point operations, peak rates."""

from __future__ import annotations

import psutil
import torch

from aitrain.config import OPTION_OF
from aitrain.config.adapter import Lora
from aitrain.config.strategy import Ddp, DeepspeedZero1, DeepspeedZero3, Fsdp
from aitrain.config.trainer import Precision
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.errors import RecipeError
from aitrain.tasks.task import Room, Task

HOST_SHARE = 0.6
"""Share of the free host memory that training on a CPU may use; the rest is for the system and the loader."""

DEVICE_SHARE = 0.85
"""Share of the free device memory that training may use; fragmentation and libraries need the rest."""

WITHOUT_ESTIMATE = 32
"""Micro-batch of a task that cannot estimate what fits."""

PEAK_BF16 = {
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
    "MI250X": 191.5e12,
    "MI300": 1307e12,
}
"""Dense bf16 peak of one device as torch counts them, operations per second, from the vendors' data sheets."""


def peak_flops(accelerator: str, precision: Precision) -> float | None:
    """Return the peak of one device in floating-point operations per second, or None if it is not known.

    Args:
        accelerator: `cpu` or `cuda`.
        precision: The recipe's arithmetic; only bf16 peaks are tabled.
    """
    if accelerator != "cuda" or precision is not Precision.bf16:
        return None
    name = torch.cuda.get_device_name()
    return next(
        (peak for word, peak in sorted(PEAK_BF16.items(), key=lambda entry: -len(entry[0])) if word in name), None
    )


def micro_batch(task: Task, ranks: Ranks, accelerator: str, group: Group) -> int:
    """Return the micro-batch per device in samples: the recipe's, or the most that memory is estimated to hold.

    Args:
        task: What is trained.
        ranks: This process's place.
        accelerator: `cpu` or `cuda`.
        group: The ranks; the smallest answer of all counts.

    Returns:
        A number that divides the global batch over the ranks.

    Raises:
        RecipeError: The batch does not divide, or not even one sample fits.
    """
    config = task.config
    faults = list(config.batch_faults(ranks.local_world, ranks.nodes))
    if faults:
        raise RecipeError(faults)
    if config.trainer.micro_batch_samples is not None:
        return config.trainer.micro_batch_samples
    per_rank = config.trainer.global_batch_samples // ranks.data_size
    free = _free_bytes(ranks, accelerator)
    room = Room(
        bytes_free=free - _state_bytes(task, ranks),
        precision_bytes=4 if config.trainer.precision is Precision.fp32 else 2,
    )
    estimated = task.fitting(room)
    fitting = -group.largest(-(WITHOUT_ESTIMATE if estimated is None else estimated))
    if fitting < 1:
        ways = [*task.smaller(), "trainer.activation_checkpointing=true", "adapter=lora"]
        raise RecipeError(
            f"trainer.micro_batch_samples=null: the estimated memory exceeds the {free / 1e9:.1f} GB of a device even "
            f"with micro-batch 1 under strategy={OPTION_OF[type(config.strategy)]}: write {', '.join(ways)} or "
            "strategy=deepspeed_zero3 on more devices; or trainer.micro_batch_samples=1 to try it anyway"
        )
    most = min(fitting, per_rank, task.most_on_cpu if accelerator == "cpu" else per_rank)
    return next(rows for rows in range(most, 0, -1) if per_rank % rows == 0)


def _free_bytes(ranks: Ranks, accelerator: str) -> int:
    if accelerator == "cuda":
        return int(DEVICE_SHARE * torch.cuda.mem_get_info(ranks.device_index(torch.cuda.device_count()))[0])
    return int(HOST_SHARE * psutil.virtual_memory().available / ranks.local_world)


def _state_bytes(task: Task, ranks: Ranks) -> int:
    """Estimate weights, gradients and AdamW state per rank: 16 bytes per trained weight, 4 per frozen one."""
    config, weights = task.config, task.parameters() or 0
    trained = 0.01 * weights if isinstance(config.adapter, Lora) else float(weights)
    held = 4.0 * weights
    gradients, moments = 4.0 * trained, 8.0 * trained
    strategy, world = config.strategy, ranks.world
    if isinstance(strategy, (Fsdp, DeepspeedZero3)):
        return int((held + gradients + moments) / world)
    if isinstance(strategy, Ddp):
        return int(held + gradients + moments)
    assert isinstance(strategy, DeepspeedZero1), f"no memory formula for {type(strategy).__name__}"
    return int(held + gradients + (moments + 4.0 * trained) / world)
