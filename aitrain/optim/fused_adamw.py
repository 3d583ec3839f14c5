"""AdamW on our multi-tensor op as a torch Optimizer: one launch per kind of tensors, clip inside, 8-bit states."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from torch.distributed.tensor import DTensor

from aitrain.errors import ShapeError
from aitrain.ops.adamw.bucket import GRANULE, Bucket, Numbers
from aitrain.ops.adamw.codes import SIGNED, blocks_of
from aitrain.ops.adamw.op import adamw_step, norm_of, prepare, squared_norms
from aitrain.ops.adamw.table import TableCache

STATES = {"fp32": torch.float32, "bf16": torch.bfloat16, "8bit": torch.uint8}
SMALLEST_8BIT = 4096
"""Tensors with fewer elements keep fp32 moments: norms and biases are sensitive and take little memory."""


@dataclass
class _Launch:
    """Tensors of a group that share one launch, with the source of their gradients."""

    group: dict[str, Any]
    step: torch.Tensor
    mesh: tuple[Any, tuple[int, ...]] | None
    owners: list[torch.Tensor] = field(default_factory=list)
    plain: bool = True
    bucket: Bucket = field(default_factory=lambda: Bucket([], [], [], [], [], [], []))
    cache: TableCache = field(default_factory=TableCache)


class FusedAdamW(torch.optim.Optimizer):
    """AdamW with decoupled weight decay over fp32 or bf16 parameters, unsharded or sharded (DTensor).

    bf16 parameters are rounded stochastically: with rounding to nearest, an update below half a unit in the last place
    (2^-9 of the weight) would be lost. The random bits depend on seed, step and element only, so that a resumed run,
    and a run on more ranks, draws the same ones.

    State of a parameter: `step` (0-dimensional, on the device, one tensor for all parameters that began together),
    `exp_avg` and `exp_avg_sq`; with 8 bits these two are codes, and `exp_avg_scale`, `exp_avg_sq_scale` are kept with
    them. Bytes per parameter, gradient included: `Bucket`.

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        betas: Decay rates of the moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        states: `fp32`, `bf16` or `8bit`.
        max_grad_norm: 2-norm over all parameters and ranks that the gradients are scaled down to, inside the step; the
            gradients themselves stay as they are. None = no clipping.
        stochastic_rounding: Of bf16 parameters and moments; False = to nearest.
        seed: Of the stochastic rounding.

    Raises:
        ShapeError: `states` is unknown.

    Source: Loshchilov and Hutter, arXiv:1711.05101; 8-bit states: Dettmers et al., arXiv:2110.02861.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        states: str = "fp32",
        max_grad_norm: float | None = None,
        stochastic_rounding: bool = True,
        seed: int = 0,
    ) -> None:
        if states not in STATES:
            raise ShapeError(f"states={states!r} is unknown: write fp32, bf16 or 8bit")
        # `fused` tells checkpoint code that the step counter lives on the device
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True})
        self.states = states
        self.max_grad_norm = max_grad_norm
        self.stochastic_rounding = stochastic_rounding
        self.seed = seed
        self._launches: list[_Launch] = []
        self._seen: list[tuple[torch.Tensor, dict[str, Any], Any, Any]] = []
        self._pending: tuple[torch.Tensor, float | None] | None = None
        self._norm: torch.Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; no value is read back from the device.

        Args:
            closure: Computes loss and gradients first, when given.

        Returns:
            What the closure returns, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        launches = self._plan()
        squares, max_norm = self._pending or (None, self.max_grad_norm)
        self._pending = None
        if squares is None and max_norm is not None and launches:
            squares = self._squares(launches)
        prepared: dict[tuple[int, int], tuple[torch.Tensor, Numbers]] = {}
        for launch in launches:
            key = (id(launch.group), id(launch.step))
            if key not in prepared:
                numbers = self._numbers(launch.group, max_norm)
                prepared[key] = prepare(launch.step, numbers, squares), numbers
            adamw_step(launch.bucket, *prepared[key], launch.cache)
        if squares is not None and prepared:
            self._norm = norm_of(next(iter(prepared.values()))[0])
        return loss

    @torch.no_grad()
    def clip_gradients(self, max_norm: float | None) -> torch.Tensor:
        """Measure the gradients now and scale them down inside the next step, in place of `max_grad_norm`.

        Args:
            max_norm: Largest 2-norm; None only measures.

        Returns:
            The 2-norm over all parameters and ranks, a scalar on the device; every rank must call.
        """
        launches = self._plan()
        if not launches:
            return torch.zeros(())
        squares = self._squares(launches)
        self._pending = (squares, max_norm)
        return squares.double().sum().sqrt().float()

    @property
    def grad_norm(self) -> torch.Tensor | None:
        """The 2-norm before clipping of the last step, on the device; None when nothing was clipped."""
        return self._norm

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load states as they were saved; torch's own would cast codes and fp32 moments to the parameters' type.

        Args:
            state_dict: From `state_dict`.
        """
        super().load_state_dict(state_dict)
        ids = [key for group in state_dict["param_groups"] for key in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for key, param in zip(ids, params, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                if torch.is_tensor(value):
                    self.state[param][name] = value.detach().to(param.device, copy=True)
        self._launches, self._seen = [], []

    def _numbers(self, group: dict[str, Any], max_norm: float | None) -> Numbers:
        beta1, beta2 = group["betas"]
        return Numbers(
            lr=float(group["lr"]),
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            max_norm=max_norm,
            stochastic=self.stochastic_rounding,
            seed=self.seed,
        )

    def _squares(self, launches: list[_Launch]) -> torch.Tensor:
        """Return sums of squares whose sum is the squared norm over all ranks."""
        whole: list[torch.Tensor] = []
        sharded: dict[tuple[Any, tuple[int, ...]], torch.Tensor] = {}
        for launch in launches:
            squares = squared_norms(launch.bucket, launch.cache)
            if launch.mesh is None:
                whole.append(squares)
            else:
                total = squares.sum().reshape(1)
                sharded[launch.mesh] = sharded[launch.mesh] + total if launch.mesh in sharded else total
        for (mesh, dims), total in sharded.items():
            for dim in dims:
                torch.distributed.all_reduce(total, group=mesh.get_group(dim))
            whole.append(total)
        return whole[0] if len(whole) == 1 else torch.cat(whole)

    def _plan(self) -> list[_Launch]:
        """Return the launches of this step with its gradients; rebuilt only when tensors were added or removed."""
        current = all(
            (param.grad is None) == (moment is None)
            and (moment is None or (state.get("exp_avg") is moment and state.get("step") is counter))
            for param, state, moment, counter in self._seen
        )
        params = sum(len(group["params"]) for group in self.param_groups)
        if not current or len(self._seen) != params or not self._same_params():
            self._rebuild()
        for launch in self._launches:
            if launch.plain:
                launch.bucket.grads = [param.grad for param in launch.owners]  # type: ignore[misc]
            else:
                launch.bucket.grads = [_local(param.grad) for param in launch.owners]
                launch.bucket.params = [_local(param) for param in launch.owners]
        return self._launches

    def _same_params(self) -> bool:
        params = (param for group in self.param_groups for param in group["params"])
        return all(seen is param for (seen, *_), param in zip(self._seen, params, strict=True))

    def _rebuild(self) -> None:
        self._seen = []
        launches: dict[tuple[Any, ...], _Launch] = {}
        offset = 0
        for number, group in enumerate(self.param_groups):
            self._begin(group)
            self._share_steps(group)
            for param in group["params"]:
                state = self.state[param] if param.grad is not None else {}
                self._seen.append((param, state, state.get("exp_avg"), state.get("step")))
                if state:
                    moment = state["exp_avg"]
                    mesh = _sharding(param)
                    key = (number, param.dtype, param.grad.dtype, moment.dtype, id(state["step"]), mesh, param.device)
                    launch = launches.setdefault(key, _Launch(group, state["step"], mesh))
                    _append(launch, param, state, offset + _first_element(param))
                offset += -(-param.numel() // GRANULE) * GRANULE
        self._launches = list(launches.values())
        for launch in self._launches:
            launch.bucket.grads = [_local(param.grad) for param in launch.owners]
            launch.bucket.check()

    def _begin(self, group: dict[str, Any]) -> None:
        """Make the states of parameters that have a gradient for the first time; they share one step counter."""
        counters: dict[torch.device, torch.Tensor] = {}
        for param in group["params"]:
            if param.grad is None or "exp_avg" in self.state[param]:
                continue
            if param.grad.is_sparse:
                raise ShapeError("FusedAdamW does not support sparse gradients: build the embedding with sparse=False")
            if param.device not in counters:
                counters[param.device] = torch.zeros((), dtype=torch.float32, device=param.device)
            self.state[param].update(step=counters[param.device], **self._moments(param))

    def _moments(self, param: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.states != "8bit" or param.numel() < SMALLEST_8BIT:
            kind = torch.bfloat16 if self.states == "bf16" else torch.float32
            return {name: torch.zeros_like(param, dtype=kind) for name in ("exp_avg", "exp_avg_sq")}
        if isinstance(param, DTensor):
            raise ShapeError(
                "8-bit states have one scale per 256 elements of a whole parameter, and this one is sharded over "
                "ranks: write strategy=ddp, or optim=adamw"
            )
        scales = {
            name: torch.zeros(blocks_of(param.numel()), dtype=torch.float32, device=param.device)
            for name in ("exp_avg_scale", "exp_avg_sq_scale")
        }
        zero = torch.full_like(param, SIGNED.zero, dtype=torch.uint8)
        return {"exp_avg": zero, "exp_avg_sq": torch.zeros_like(zero), **scales}

    def _share_steps(self, group: dict[str, Any]) -> None:
        """Share one counter among parameters with the same count: after loading, each has its own copy."""
        states = [self.state[param] for param in group["params"] if "step" in self.state[param]]
        if len({id(state["step"]) for state in states}) <= 1:
            return
        shared: dict[tuple[float, torch.device], torch.Tensor] = {}
        for state in states:
            counter = torch.as_tensor(state["step"], dtype=torch.float32)
            state["step"] = counter
        counts = torch.stack([state["step"].cpu() for state in states]).tolist()
        for count, state in zip(counts, states, strict=True):
            device = state["exp_avg"].device
            state["step"] = shared.setdefault((count, device), state["step"].to(device))


def _append(launch: _Launch, param: torch.Tensor, state: dict[str, Any], offset: int) -> None:
    bucket: Any = launch.bucket
    launch.owners.append(param)
    launch.plain &= not isinstance(param, DTensor)
    bucket.params.append(_local(param))
    bucket.exp_avgs.append(_local(state["exp_avg"]))
    bucket.exp_avg_sqs.append(_local(state["exp_avg_sq"]))
    bucket.offsets.append(offset)
    if state["exp_avg"].dtype == torch.uint8:
        bucket.exp_avg_scales.append(state["exp_avg_scale"])
        bucket.exp_avg_sq_scales.append(state["exp_avg_sq_scale"])


def _local(tensor: Any) -> torch.Tensor:
    """Return this rank's part."""
    local: torch.Tensor = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
    return local


def _sharding(param: torch.Tensor) -> tuple[Any, tuple[int, ...]] | None:
    """Return mesh and mesh dimensions over which a parameter is cut, or None when every rank has all of it."""
    if not isinstance(param, DTensor):
        return None
    if any(placement.is_partial() for placement in param.placements):
        raise ShapeError(f"a parameter with placements {param.placements} is a partial sum: shard or replicate it")
    dims = tuple(i for i, placement in enumerate(param.placements) if placement.is_shard())
    return (param.device_mesh, dims) if dims else None


def _first_element(param: torch.Tensor) -> int:
    """Return the number, within the whole parameter, of this rank's first element.

    Rows are cut as `torch.chunk` cuts them. A cut along another dimension gives every rank a range of its own instead:
    the random bits then depend on the number of ranks, and no two elements share them.
    """
    if not isinstance(param, DTensor):
        return 0
    coordinate = param.device_mesh.get_coordinate()
    assert coordinate is not None, "a parameter on a mesh that this rank is not part of"
    start, rows = 0, param.shape[0] if param.ndim else 1
    parts = 0
    for index, size, placement in zip(coordinate, param.device_mesh.shape, param.placements, strict=True):
        if placement.is_shard(0):
            each = -(-rows // size)
            start += min(index * each, rows)
            rows = min(each, max(rows - index * each, 0))
        elif placement.is_shard():
            parts = parts * size + index
    row = param.numel() // max(param.shape[0] if param.ndim else 1, 1)
    return start * row + parts * (-(-param._local_tensor.numel() // GRANULE) * GRANULE)
