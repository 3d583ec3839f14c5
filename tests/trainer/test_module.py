"""The step of any task: a share of the global batch's mean, whatever the split; built once, in the strategy's way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from aitrain.trainer.module import Module


class Squares:
    """A task whose loss is the square of what the model makes of each number."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def build(self) -> nn.Module:
        self.calls.append("build")
        torch.manual_seed(0)
        return nn.Linear(1, 1)

    def finish(self, model: nn.Module) -> None:
        self.calls.append("finish")

    def loss_sum(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch["x"]).square().sum()


def module(data_size: int, accumulation: int) -> Module:
    task: Any = Squares()
    made = Module(task, data_size, accumulation)
    made.model = task.build()
    return made


@pytest.mark.parametrize(("data_size", "accumulation"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_gradients_of_shares_are_those_of_the_mean(data_size: int, accumulation: int) -> None:
    x = torch.arange(1.0, 9.0)[:, None]
    whole = module(1, 1)
    whole.training_step({"x": x, "global_weight": 8}, 0).backward()
    parts = module(data_size, accumulation)
    for share in x.chunk(data_size * accumulation):
        # Lightning divides by the accumulation and a strategy averages over the ranks
        (parts.training_step({"x": share, "global_weight": 8}, 0) / accumulation / data_size).backward()
    for mine, other in zip(parts.built.parameters(), whole.built.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    assert parts.loss_sum is not None and not parts.loss_sum.requires_grad
    torch.testing.assert_close(parts.loss_sum, whole.loss_sum)


def test_model_is_built_once_inside_the_strategys_own_way() -> None:
    task: Any = Squares()

    class Building:
        def __enter__(self) -> None:
            task.calls.append("enter")

        def __exit__(self, *_: object) -> None:
            task.calls.append("exit")

    made = Module(task, 1, 1)
    made._trainer = SimpleNamespace(strategy=SimpleNamespace(building=Building))  # type: ignore[assignment]
    made.configure_model()
    made.configure_model()
    assert task.calls == ["enter", "build", "exit", "finish"]
