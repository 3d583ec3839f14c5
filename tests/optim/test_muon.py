"""Muon and its AdamW against PyTorch's own, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aitrain.optim.muon import MuonWithAdamW, orthogonalise

SHAPES = [(8, 8), (24, 6), (5, 16), (1, 7)]  # square, tall (the only ones that are scaled), wide, one row


def drawn(shapes: list[tuple[int, ...]], seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def walk(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], steps: int) -> None:
    """Give the same gradients, drawn from a seed, to any optimizer."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def muon(parameters: list[torch.nn.Parameter], **change: Any) -> MuonWithAdamW:
    group = {"params": parameters, "kind": "muon", "lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    return MuonWithAdamW([{**group, "nesterov": True, "steps": 5, **change}])


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("steps", [1, 5])
def test_equals_torch_muon(nesterov: bool, steps: int) -> None:
    ours, theirs = drawn(SHAPES), drawn(SHAPES)
    walk(muon(ours, nesterov=nesterov, steps=steps), ours, 6)
    # "original" is Jordan's scale: sqrt(max(1, rows / columns))
    oracle = torch.optim.Muon(
        theirs, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=nesterov, ns_steps=steps, adjust_lr_fn="original"
    )
    walk(oracle, theirs, 6)
    for mine, other in zip(ours, theirs, strict=True):
        # both iterate in bf16 and may round in another order: one ULP of 1 (2^-8) per step, at rate 0.02 and scale 2
        torch.testing.assert_close(mine, other, rtol=0, atol=6 * 0.02 * 2 * 2**-8)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_its_adamw_equals_torch_adamw(weight_decay: float) -> None:
    shapes: list[tuple[int, ...]] = [(7, 4), (6,), ()]
    ours, theirs = drawn(shapes), drawn(shapes)
    numbers: dict[str, Any] = {"lr": 3e-2, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": weight_decay}
    walk(MuonWithAdamW([{"params": ours, "kind": "adamw", **numbers}]), ours, 12)
    walk(torch.optim.AdamW(theirs, **numbers), theirs, 12)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_singular_values_come_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(32, 12, generator=generator)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalise(matrix, steps=10).float()
    assert found.shape == matrix.shape
    # the coefficients trade exactness for speed: the values end between about 0.7 and 1.2 (Jordan et al.)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    assert torch.nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_a_gradient_of_zeros_moves_nothing() -> None:
    (parameter,) = drawn([(4, 4)])
    before = parameter.detach().clone()
    parameter.grad = torch.zeros_like(parameter)
    muon([parameter], weight_decay=0.0).step()
    assert torch.equal(parameter, before)


def test_parameters_without_gradient_get_no_state() -> None:
    moved, still = drawn([(4, 4), (4, 4)])
    before = still.detach().clone()
    optimizer = muon([moved, still])
    moved.grad = torch.ones_like(moved)
    optimizer.step()
    assert torch.equal(still, before)
    assert list(optimizer.state) == [moved]


def test_keys_of_the_state_are_those_that_checkpoints_keep() -> None:
    matrix, vector = drawn([(4, 4), (4,)])
    adamw = {"params": [vector], "kind": "adamw", "lr": 0.1, "weight_decay": 0.0, "betas": (0.9, 0.95), "eps": 1e-8}
    optimizer = muon([matrix])
    optimizer.add_param_group(adamw)
    walk(optimizer, [matrix, vector], 3)
    assert set(optimizer.state[matrix]) == {"momentum_buffer"}
    assert set(optimizer.state[vector]) == {"step", "exp_avg", "exp_avg_sq"}
    assert optimizer.state[vector]["step"] == 3
    assert all(torch.is_tensor(value) for state in optimizer.state.values() for value in state.values())


def test_going_on_from_saved_state_equals_going_through() -> None:
    through, stopped = drawn([(6, 4)]), drawn([(6, 4)])
    first, second = muon(through), muon(stopped)
    walk(first, through, 2)
    walk(second, stopped, 2)
    third = muon(stopped)
    third.load_state_dict(second.state_dict())
    walk(first, through, 2)
    walk(third, stopped, 2)
    assert torch.equal(through[0], stopped[0])


def test_closure_is_called_with_gradients() -> None:
    (parameter,) = drawn([(3, 3)])
    optimizer = muon([parameter])

    def closure() -> torch.Tensor:
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx((drawn([(3, 3)])[0].detach() ** 2).sum().item())
    assert not torch.equal(parameter, drawn([(3, 3)])[0])


@pytest.mark.parametrize("fault", [{"nesterov": False}, {"momentum": 0.9}, {"weight_decay": 0.0}, {"lr": 0.021}])
def test_the_comparison_sees_a_wrong_number(fault: dict[str, Any]) -> None:
    ours, theirs = drawn(SHAPES), drawn(SHAPES)
    walk(muon(ours, **fault), ours, 6)
    walk(muon(theirs), theirs, 6)
    worst = max((mine - other).abs().max().item() for mine, other in zip(ours, theirs, strict=True))
    assert worst > 6 * 0.02 * 2 * 2**-8
