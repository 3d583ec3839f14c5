"""From the recipe's optimizer to a torch Optimizer over named parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn

from aitrain.config.custom import typed_options
from aitrain.config.optim import AdamW, AdamW8bit, CustomOptim, FusedStep, Muon, Optim, Sgd
from aitrain.errors import MissingExtraError, RecipeError
from aitrain.io.user_code import load_class
from aitrain.ops.backend import use_kernels
from aitrain.optim.fused_adamw import FusedAdamW
from aitrain.optim.muon import MuonWithAdamW

Named = list[tuple[str, nn.Parameter]]


def full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return a parameter's shape before sharding.

    Args:
        parameter: Any parameter; under ZeRO-3 its own shape is empty and DeepSpeed keeps the real one in `ds_shape`.
    """
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def is_decayed(parameter: nn.Parameter) -> bool:
    """Return whether weight decay applies: to matrices, not to norms, biases and other vectors.

    Args:
        parameter: Any parameter, sharded or not.
    """
    return len(full_shape(parameter)) >= 2


def build_optimizer(
    config: Optim, named: Iterable[tuple[str, nn.Parameter]], capturable_on: str
) -> torch.optim.Optimizer:
    """Build the optimizer over the trainable parameters.

    Every group carries `lr_peak`, which the schedule multiplies.

    Args:
        config: The recipe's optimizer.
        named: Names and parameters; those without gradient are left out.
        capturable_on: Device type, `cpu` or `cuda`; decides which kernels there are.

    Raises:
        MissingExtraError: 8-bit states of bitsandbytes are asked and it is not installed.
    """
    trainable: Named = [(name, p) for name, p in named if p.requires_grad]
    if isinstance(config, Muon):
        return _muon(config, trainable)
    groups = _decay_groups(trainable, config.weight_decay, config.lr)
    if isinstance(config, CustomOptim):
        found, options = own_optimizer(config)
        return cast(torch.optim.Optimizer, _closing(found)(groups, lr=config.lr, **options))
    if isinstance(config, AdamW) and _is_ours(config, capturable_on):
        return FusedAdamW(
            groups,
            lr=config.lr,
            betas=(config.betas[0], config.betas[1]),
            eps=config.eps,
            states="8bit" if isinstance(config, AdamW8bit) else "fp32",
        )
    if isinstance(config, AdamW8bit):
        try:
            import bitsandbytes
        except ImportError:
            raise MissingExtraError(
                "optim.fused=never needs bitsandbytes for adamw_8bit: pip install 'aitrain[qlora]', or leave it out"
            ) from None
        return bitsandbytes.optim.AdamW8bit(groups, lr=config.lr, betas=tuple(config.betas), eps=config.eps)
    if isinstance(config, AdamW):
        # one fused launch per group; without it the host is busier than the GPU at small sizes
        return torch.optim.AdamW(
            groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=True
        )
    assert isinstance(config, Sgd), f"no optimizer for {type(config).__name__}"
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


def _closing(found: Any) -> type:
    """Return the user's class with a `step` that runs Lightning's closure first, which many optimizers leave out."""

    def step(self: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found.step(self)
        return loss

    return type(found.__name__, (found,), {"step": step})


def own_optimizer(config: CustomOptim) -> tuple[type, dict[str, Any]]:
    """Return the user's optimizer class and its options.

    Args:
        config: The recipe's optimizer.

    Raises:
        RecipeError: There is no such class, it is no optimizer, or its options are wrong.
    """
    found = load_class(config.file, config.class_, "optim")
    if not issubclass(found, torch.optim.Optimizer):
        raise RecipeError(f"optim.class={config.class_} is not an optimizer: inherit from torch.optim.Optimizer")
    options = typed_options(found, config.options, "optim.options.")
    return found, {} if options is None else vars(options)


def _is_ours(config: AdamW, device: str) -> bool:
    """Return whether our own AdamW takes the step; without kernels torch's fused one is faster, except for 8 bits."""
    if config.fused is not FusedStep.auto:
        return config.fused is FusedStep.always
    return device == "cuda" and (isinstance(config, AdamW8bit) or use_kernels(torch.empty(0, device=device)))


def _decay_groups(named: Named, weight_decay: float, lr: float) -> list[dict[str, Any]]:
    groups = [
        {"params": [p for _, p in named if is_decayed(p)], "weight_decay": weight_decay, "lr": lr, "lr_peak": lr},
        {"params": [p for _, p in named if not is_decayed(p)], "weight_decay": 0.0, "lr": lr, "lr_peak": lr},
    ]
    if weight_decay == 0.0:  # one group: fewer launches, and one partition instead of two under ZeRO
        return [{**groups[0], "params": [p for _, p in named]}]
    return [group for group in groups if group["params"]]


def _muon(config: Muon, named: Named) -> torch.optim.Optimizer:
    def is_hidden_matrix(name: str, p: nn.Parameter) -> bool:
        return len(full_shape(p)) == 2 and not any(word in name for word in ("embed", "lm_head", "wte", "wpe"))

    matrices = [p for name, p in named if is_hidden_matrix(name, p)]
    rest: Named = [(name, p) for name, p in named if not is_hidden_matrix(name, p)]
    groups: list[dict[str, Any]] = []
    if matrices:
        muon = {"params": matrices, "lr": config.lr, "lr_peak": config.lr, "weight_decay": config.weight_decay}
        groups.append(
            {
                **muon,
                "kind": "muon",
                "momentum": config.momentum,
                "nesterov": config.nesterov,
                "steps": config.orthogonalise_steps,
            }
        )
    adamw = {"kind": "adamw", "betas": tuple(config.betas), "eps": config.eps}
    groups += [
        {**group, **adamw} for group in _decay_groups(rest, config.weight_decay, config.adamw_lr) if group["params"]
    ]
    return MuonWithAdamW(groups)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to its peak times a factor.

    Args:
        optimizer: Built by `build_optimizer`, possibly wrapped by a strategy.
        factor: From `learning_rate_factor`.

    Returns:
        The first group's new rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["lr_peak"] * factor
    return float(optimizer.param_groups[0]["lr"]) if optimizer.param_groups else math.nan
