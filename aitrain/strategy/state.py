"""Named, unsharded tensors in and out of a strategy: the one view that checkpoints, export and tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from aitrain.optim.fused_adamw import FusedAdamW

Reader = Callable[[str], torch.Tensor]
"""Returns the unsharded fp32 tensor of a name, on the CPU."""


class StateAccess(Protocol):
    """What every strategy offers. All methods are collective: every rank calls them in the same order."""

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and unsharded fp32 value (on the CPU) of every trained parameter and persistent buffer."""

    def put_full_weights(self, read: Reader) -> None:
        """Set every trained parameter and persistent buffer, master weights included."""

    def full_optimizer_state(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Yield parameter name, state key and unsharded value (on the CPU) of the optimizer's state."""

    def put_full_optimizer_state(self, keys: Mapping[str, list[str]], read: Callable[[str, str], torch.Tensor]) -> None:
        """Set the optimizer's state from parameter name -> keys and a reader of (name, key)."""

    def clip_gradients(self, max_norm: float | None) -> torch.Tensor | None:
        """Scale the gradients to a 2-norm and return the norm before; None if the engine does it."""

    def last_gradient_norm(self) -> torch.Tensor | float | None:
        """Return the 2-norm before clipping of the last optimizer step where the engine clips; None elsewhere."""


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and parameter of everything that is trained.

    Args:
        model: The model, sharded or not.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def persistent_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and value of the buffers that belong to a model's state.

    Args:
        model: The model, sharded or not.
    """
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), buffer


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor unsharded on the CPU.

    Args:
        tensor: A plain tensor or a DTensor; for a DTensor every rank must call.
    """
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().to("cpu")


def copy_whole(target: torch.Tensor, value: torch.Tensor) -> None:
    """Write an unsharded value into a tensor that may be sharded; no communication.

    Args:
        target: A plain tensor or a DTensor.
        value: The unsharded value, of the target's unsharded shape.
    """
    value = value.to(target.device)
    if isinstance(target, DTensor):
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    with torch.no_grad():
        target.copy_(value)


class LocalState:
    """State access where parameters and optimizer state are plain or DTensors: one device, ddp, fsdp."""

    lightning_module: Any
    optimizers: Any

    @property
    def trained_model(self) -> nn.Module:
        """The task's model, without Lightning's or a strategy's wrapper."""
        model: nn.Module = self.lightning_module.model
        return model

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and unsharded fp32 value (on the CPU) of every trained parameter and persistent buffer."""
        for name, parameter in trained(self.trained_model):
            yield name, whole(parameter)
        for name, buffer in persistent_buffers(self.trained_model):
            yield name, whole(buffer)

    def put_full_weights(self, read: Reader) -> None:
        """Set every trained parameter and persistent buffer.

        Args:
            read: Returns the unsharded tensor of a name.
        """
        for name, parameter in trained(self.trained_model):
            copy_whole(parameter, read(name))
        for name, buffer in persistent_buffers(self.trained_model):
            copy_whole(buffer, read(name))

    def full_optimizer_state(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Yield parameter name, state key and unsharded value (on the CPU) of the optimizer's state."""
        state = self.optimizers[0].state
        for name, parameter in trained(self.trained_model):
            for key, value in state.get(parameter, {}).items():
                if torch.is_tensor(value):
                    yield name, key, whole(value)

    def put_full_optimizer_state(self, keys: Mapping[str, list[str]], read: Callable[[str, str], torch.Tensor]) -> None:
        """Set the optimizer's state.

        Args:
            keys: Parameter name -> state keys that were saved.
            read: Returns the unsharded value of (name, key).
        """
        optimizer = self.optimizers[0]
        fused = any(group.get("fused") for group in optimizer.param_groups)
        for name, parameter in trained(self.trained_model):
            for key in keys.get(name, []):
                value = read(name, key)
                if value.shape == parameter.shape:
                    # the state's own type: codes and fp32 moments of bf16 parameters are no values of those
                    entry = torch.zeros_like(parameter, dtype=value.dtype, memory_format=torch.preserve_format)
                    copy_whole(entry, value)
                else:  # step counters: a copy each, because fused kernels add in place, where those want them
                    entry = value.to(parameter.device, copy=True) if fused else value.clone()
                optimizer.state[parameter][key] = entry

    def clip_gradients(self, max_norm: float | None) -> torch.Tensor | None:
        """Scale the gradients of the global batch to a 2-norm.

        Args:
            max_norm: Largest 2-norm; None only measures.

        Returns:
            The norm before, a scalar on the device.
        """
        if isinstance(self.optimizers[0], FusedAdamW):  # measures in one launch and clips inside its step
            return self.optimizers[0].clip_gradients(max_norm)
        parameters = [p for _, p in trained(self.trained_model) if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    def last_gradient_norm(self) -> torch.Tensor | float | None:
        """Return None: `clip_gradients` has already returned the norm."""
        return None
