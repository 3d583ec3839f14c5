"""The process group of a run, and communication between ranks other than gradients."""

from __future__ import annotations

import atexit
import gc
import os
import socket
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from aitrain.dist.ranks import Ranks
from aitrain.errors import AitrainError, LaunchError, of_code


class Group:
    """All ranks of a run; with one rank no method communicates.

    Args:
        ranks: This process's place.
        accelerator: `cpu` (gloo) or `cuda` (nccl, or rccl on AMD, for tensors; gloo for flags and objects).
        timeout_min: Longest wait for the other ranks, in minutes.
    """

    def __init__(self, ranks: Ranks, accelerator: str, timeout_min: float = 30.0) -> None:
        self.ranks = ranks
        self._host_group: Any = None
        self._kept: deque[torch.Tensor] = deque(maxlen=4)
        if ranks.world == 1:
            return
        os.environ.update(ranks.environment())
        backend = "nccl" if accelerator == "cuda" else "gloo"
        timeout = timedelta(minutes=timeout_min)
        if accelerator == "cuda":
            torch.cuda.set_device(ranks.device_index(torch.cuda.device_count()))
        dist.init_process_group(backend, rank=ranks.rank, world_size=ranks.world, timeout=timeout)
        # flags must not wait for the GPU's queue, so they travel over the host
        self._host_group = dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo", timeout=timeout)
        atexit.register(self._end_gloo)

    def refuse_shared_devices(self) -> None:
        """Refuse two ranks on one GPU: each sees one, which may be its own or the only one of the node.

        Raises:
            LaunchError: They share one; every rank raises it.
        """
        own = f"{socket.gethostname()} {torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        everyone = self.to_first(own)
        shared = next((place for place in everyone if everyone.count(place) > 1), None)
        shared = self.from_first(shared)
        if shared is not None:
            raise LaunchError(
                f"{self.ranks.launcher} started {self.ranks.world} ranks, and several of them share a GPU "
                f"({shared}): start one rank per GPU, or give each its own (srun --gpus-per-task=1)"
            )

    def any_true(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; every rank must call this.

        Args:
            flag: This rank's answer.
        """
        return self.largest(int(flag)) > 0

    def largest(self, value: int) -> int:
        """Return the largest value over all ranks; every rank must call this.

        Args:
            value: This rank's value.
        """
        if self._host_group is None:
            return value
        tensor = torch.tensor([value], dtype=torch.int64)
        self._kept.append(tensor)  # see `_end_gloo`
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._host_group)
        return int(tensor.item())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add a tensor over all ranks, in place, on its own device; every rank must call this.

        Args:
            values: Any shape, the same on every rank.

        Returns:
            `values`, now the sum.
        """
        if self.ranks.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the tensors of all ranks, one after the other; every rank must call this. No gradient flows through.

        Args:
            values: `(N, ...)`, the same shape on every rank.

        Returns:
            `(R N, ...)`, in the order of the ranks.
        """
        if self.ranks.world == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.ranks.world)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def from_first(self, value: Any) -> Any:
        """Return rank 0's value on every rank; it must be made of plain Python values.

        Args:
            value: The value on rank 0; ignored elsewhere.
        """
        if self._host_group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._host_group)
        return box[0]

    def by_first(self, find: Callable[[], Any]) -> Any:
        """Run a function on rank 0 and broadcast its result; its exception is raised on every rank.

        Args:
            find: Returns plain Python values; called on rank 0 only.

        Raises:
            AitrainError: What `find` raised.
        """
        found: Any = None
        raised: AitrainError | None = None
        if self.ranks.is_first:
            try:
                found = find()
            except AitrainError as error:
                raised = error
        fault, found = self.from_first((None if raised is None else (raised.exit_code, str(raised)), found))
        if fault is not None:
            raise raised or of_code(*fault)
        return found

    def to_first(self, value: Any) -> list[Any]:
        """Return the values of all ranks in order, on rank 0; an empty list elsewhere.

        Args:
            value: This rank's value, made of plain Python values.
        """
        if self._host_group is None:
            return [value]
        box: list[Any] | None = [None] * self.ranks.world if self.ranks.is_first else None
        dist.gather_object(value, box, dst=0, group=self._host_group)
        return box or []

    def everywhere(self, value: Any) -> list[Any]:
        """Return the values of all ranks in order, on every rank.

        Args:
            value: This rank's value, made of plain Python values or tensors on the CPU.
        """
        if self._host_group is None:
            return [value]
        box: list[Any] = [None] * self.ranks.world
        dist.all_gather_object(box, value, group=self._host_group)
        return box

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.largest(0)

    def close(self) -> None:
        """Leave the process group; a second call does nothing."""
        self._end_gloo()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _end_gloo(self) -> None:
        """Wait until the threads of gloo have ended; also at the exit of a process that does not close the group.

        Such a thread releases the tensors of the last collective a moment after the collective is done, and needs the
        interpreter for that. If the interpreter is ending by then, the process aborts ("terminate called without an
        active exception", exit code 134), and a run that ended well looks like one that crashed. The threads end when
        the group is destroyed and nothing refers to it any more. Where something does (FSDP and DeepSpeed keep it in
        their own state), the tensors of the last collectives, which are ours, are held here, so that nothing is left to
        release. NCCL's groups are left alone: destroying them talks to the other ranks, and a rank that leaves with an
        error must not wait for those.
        """
        group, self._host_group = self._host_group, None
        if group is None or not dist.is_initialized():
            return
        dist.destroy_process_group(group)
        del group
        gc.collect()
