"""DeepSpeed ZeRO under Lightning: on CPUs too, with the loss scaled once, pretrained weights kept and unsharded
state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import nn

from aitrain.config.strategy import DeepspeedZero1, DeepspeedZero2, DeepspeedZero3
from aitrain.strategy.state import Reader, persistent_buffers, trained


def stage_of(config: DeepspeedZero1) -> int:
    """Return the ZeRO stage of an option.

    Args:
        config: The recipe's options.
    """
    return 3 if isinstance(config, DeepspeedZero3) else 2 if isinstance(config, DeepspeedZero2) else 1


def engine_config(config: DeepspeedZero1, max_grad_norm: float | None) -> dict[str, Any]:
    """Return DeepSpeed's JSON configuration; batch sizes are filled in by Lightning.

    Args:
        config: The recipe's options.
        max_grad_norm: 2-norm to clip at; None = no clipping.

    Source: https://www.deepspeed.ai/docs/config-json/.
    """
    stage = stage_of(config)
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": False}
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if isinstance(config, DeepspeedZero3) and config.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "zero_optimization": zero,
        "gradient_clipping": max_grad_norm or 0.0,
        "train_micro_batch_size_per_gpu": 1,  # only DeepSpeed's own throughput log reads it
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


class Bf16Autocast(DeepSpeedPrecision):
    """bf16 as the other strategies have it: weights, gradients and reductions in fp32, products in bf16.

    DeepSpeed's own bf16 keeps weights in bf16 and so every gradient of a micro-batch, whatever it adds them up in: an
    update with SGD was five times as far from that of fp32 as ddp's. The price is 2 bytes per weight, and twice the
    traffic of gathering weights under stage 3.

    Args:
        device_type: `cpu` or `cuda`.
        keep_casts: Keep the bf16 copy of a weight for a whole step; under stage 3 that would hold the whole model.
    """

    def __init__(self, device_type: str, keep_casts: bool) -> None:
        super().__init__("32-true")
        self._device_type, self._keep_casts = device_type, keep_casts

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        """Compute in bf16 inside the block."""
        with torch.autocast(self._device_type, dtype=torch.bfloat16, cache_enabled=self._keep_casts):
            yield


class DeepSpeedZero(DeepSpeedStrategy):
    """Lightning's DeepSpeedStrategy with its faults fixed.

    Fixed: CPUs are refused (`setup_environment`); the loss is divided by the accumulation count twice (`backward`);
    Hugging Face weights are lost or refused under stage 3 (`building`); bf16 (`Bf16Autocast`).

    Args:
        config: The recipe's options.
        max_grad_norm: 2-norm to clip at; None = no clipping.
        bf16_on: Device type, `cpu` or `cuda`, to compute on in bf16; None = fp32.
        kwargs: For `DeepSpeedStrategy`.
    """

    def __init__(
        self, config: DeepspeedZero1, max_grad_norm: float | None, bf16_on: str | None = None, **kwargs: Any
    ) -> None:
        self._stage = stage_of(config)
        if bf16_on is not None:
            kwargs["precision_plugin"] = Bf16Autocast(bf16_on, keep_casts=self._stage < 3)
        super().__init__(config=engine_config(config, max_grad_norm), **kwargs)

    @property
    def trained_model(self) -> nn.Module:
        """The task's model, without Lightning's or a strategy's wrapper."""
        task: Any = self.lightning_module
        model: nn.Module = task.model
        return model

    def setup_environment(self) -> None:
        """Set up as Lightning does, but let CPUs through: they are what CI has."""
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_environment()
            return
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # Lightning's CPU devices have no index; DeepSpeed compares it with 0
        assert self.parallel_devices is not None
        self.parallel_devices = [torch.device("cpu", i) for i in range(len(self.parallel_devices))]
        os.environ["LOCAL_SIZE"] = str(len(self.parallel_devices))
        import deepspeed

        # an op that only inference uses; building it takes half a minute and a compiler
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        super(DeepSpeedStrategy, self).setup_environment()

    def backward(self, closure_loss: torch.Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the engine's backward pass without its own division by the accumulation count: Lightning has divided.

        Args:
            closure_loss: Scalar loss of the micro-batch, divided already.
            optimizer: Lightning's view of the optimizer.
            args: Passed on.
            kwargs: Passed on.

        Returns:
            The loss.
        """
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Do nothing: the pretrained model is built sharded (`building`), adapters are built unsharded and sharded
        later.
        """
        yield

    @contextmanager
    def building(self) -> Iterator[None]:
        """Build a Hugging Face model and its adapter inside this block: under stage 3 it is sharded while it loads.

        While an `HfDeepSpeedConfig` lives, transformers opens `deepspeed.zero.Init` by itself and gathers each weight
        before it fills it (without one, weights keep the shape `[0]`), and peft gathers what DoRA must see whole. It
        must not outlive the block: the export at the end loads an ordinary model in the same process.

        Source: https://huggingface.co/docs/transformers/main_classes/deepspeed.
        """
        self._init_config_if_needed()
        if self._stage < 3:
            yield
            return
        from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

        config = dict(self.config or {})
        config.setdefault("train_batch_size", self.world_size * config["gradient_accumulation_steps"])
        alive = HfDeepSpeedConfig(config)  # transformers refers to it weakly: this name keeps it
        try:
            yield
        finally:
            unset_hf_deepspeed_config()
            del alive

    def clip_gradients(self, max_norm: float | None) -> torch.Tensor | None:
        """Return None: the engine clips inside its step.

        Args:
            max_norm: Ignored here; given to the engine when it was configured.
        """
        return None

    def last_gradient_norm(self) -> torch.Tensor | float | None:
        """Return the 2-norm before clipping of the last optimizer step."""
        norm: torch.Tensor | float | None = self.deepspeed_engine.get_global_grad_norm()
        return norm

    @property
    def _zero_optimizer(self) -> Any:
        return self.optimizers[0]

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and unsharded fp32 master value (on the CPU) of every trained parameter and persistent buffer."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in trained(self.trained_model):
            value = safe_get_full_fp32_param(parameter)
            assert value is not None, f"DeepSpeed has no master weight of {name}"
            yield name, value.detach().float().to("cpu")
        for name, buffer in persistent_buffers(self.trained_model):
            yield name, buffer.detach().to("cpu")

    def put_full_weights(self, read: Reader) -> None:
        """Set every trained parameter, in the model's precision and in the fp32 master copy, and persistent buffers.

        Args:
            read: Returns the unsharded tensor of a name.
        """
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in trained(self.trained_model):
            value = read(name).to(self.root_device)
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self._stage == 3):
                parameter.data.copy_(value)
            safe_set_full_fp32_param(parameter, value)
        for name, buffer in persistent_buffers(self.trained_model):
            buffer.copy_(read(name))

    def full_optimizer_state(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Yield parameter name, state key and unsharded value (on the CPU) of the optimizer's state."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link_optimizer_state()
        inner = self._zero_optimizer.optimizer.state
        first: dict[str, Any] = next((state for state in inner.values() if state), {})
        for name, parameter in trained(self.trained_model):
            for key, value in first.items():
                if torch.is_tensor(value) and value.ndim > 0:
                    yield name, key, safe_get_full_optimizer_state(parameter, key).detach().to("cpu")
                elif torch.is_tensor(value):
                    yield name, key, value.detach().to("cpu").clone()

    def put_full_optimizer_state(self, keys: Mapping[str, list[str]], read: Callable[[str, str], torch.Tensor]) -> None:
        """Set the optimizer's state.

        Args:
            keys: Parameter name -> state keys that were saved.
            read: Returns the unsharded value of (name, key).
        """
        from deepspeed.utils import safe_set_full_optimizer_state

        names = [name for name, _ in trained(self.trained_model) if keys.get(name)]
        if not names:
            return
        scalars = [key for key in keys[names[0]] if read(names[0], key).ndim == 0]
        tensors = [key for key in keys[names[0]] if key not in scalars]
        inner = self._zero_optimizer.optimizer
        partitions = self._partitions()
        for flat in partitions:
            state = inner.state[flat]
            for key in tensors:
                state[key] = torch.zeros_like(flat)
            for key in scalars:
                state[key] = read(names[0], key).to(flat.device)
        self._link_optimizer_state()
        for name, parameter in trained(self.trained_model):
            for key in tensors:
                safe_set_full_optimizer_state(parameter, read(name, key).to(self.root_device), key)

    def _link_optimizer_state(self) -> None:
        """Let stages 1 and 2 find each parameter's slice of the optimizer state.

        DeepSpeed links once, inside the first step of the first parameter group: later groups have no state yet at that
        point and are never linked.
        """
        if self._stage < 3:
            self._zero_optimizer._hp_optimizer_states_linked = False
            self._zero_optimizer._lazy_init_hp_params_optimizer_state()

    def _partitions(self) -> list[torch.Tensor]:
        optimizer = self._zero_optimizer
        if self._stage == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        return list(optimizer.single_partition_of_fp32_groups)
