"""Muon on hidden matrices and AdamW on everything else, as one torch Optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration that drives singular values towards 1 (Jordan et al., 2024)."""


def orthogonalise(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """Return a matrix with the same singular vectors and singular values near 1.

    Args:
        matrix: Shape `(rows, columns)`.
        steps: Newton-Schulz iterations.

    Returns:
        Tensor of the shape of `matrix` in bf16, in which the iteration is stable.

    Source: Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024, algorithm 2.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16()
    wide = x if x.size(0) <= x.size(1) else x.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if x.size(0) <= x.size(1) else wide.T


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer of two kinds of groups, because Lightning and checkpoints know one optimizer per run.

    Args:
        groups: Each with `kind` `muon` (`momentum`, `nesterov`, `steps`) or `adamw` (`betas`, `eps`), and `lr`,
            `weight_decay`.

    Source: as `orthogonalise`; the update is scaled by `sqrt(max(1, rows / columns))` as there.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, defaults={})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step.

        Args:
            closure: Computes loss and gradients first, when given.

        Returns:
            What the closure returns, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._muon if group["kind"] == "muon" else self._adamw
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, group)
        return loss

    def _muon(self, parameter: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        buffer = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        direction = grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
        scale = max(1.0, parameter.size(0) / parameter.size(1)) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonalise(direction, group["steps"]).to(parameter.dtype), alpha=-group["lr"] * scale)

    def _adamw(self, parameter: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step, (beta1, beta2) = float(state["step"]), group["betas"]
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(state["exp_avg"], root, value=-group["lr"] / (1 - beta1**step))
