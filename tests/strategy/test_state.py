"""State goes out whole and comes back so that training goes on bit for bit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aitrain.config.optim import AdamW, Muon, Optim, Sgd
from aitrain.optim.build import build_optimizer
from aitrain.strategy.state import LocalState, copy_whole, persistent_buffers, trained, whole


class Small(nn.Module):
    """Trained and frozen parameters, persistent and other buffers, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.proj = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Linear(6, 6, bias=False)
        self.frozen.weight.requires_grad_(False)
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.proj(self.embed(ids)) + self.frozen(self.embed(ids))))


class OneDevice(LocalState):
    """`LocalState` as a strategy on one device is: a task and its optimizer."""

    def __init__(self, config: Optim, seed: int) -> None:
        torch.manual_seed(seed)
        model = Small()
        self.lightning_module = SimpleNamespace(model=model)
        self.optimizers = [build_optimizer(config, model.named_parameters(), "cpu")]

    def step(self, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(9, (16,), generator=generator)
        loss = nn.functional.cross_entropy(self.trained_model(ids), ids.roll(1))
        self.optimizers[0].zero_grad()
        loss.backward()
        self.optimizers[0].step()
        return loss.item()


def read_out(strategy: OneDevice) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """Copy everything out, as a checkpoint does."""
    weights = {name: value.clone() for name, value in strategy.full_weights()}
    state: dict[str, dict[str, torch.Tensor]] = {}
    for name, key, value in strategy.full_optimizer_state():
        state.setdefault(name, {})[key] = value.clone()
    return weights, state


def put_in(strategy: OneDevice, weights: dict[str, torch.Tensor], state: dict[str, dict[str, torch.Tensor]]) -> None:
    strategy.put_full_weights(weights.__getitem__)
    strategy.put_full_optimizer_state({n: list(keys) for n, keys in state.items()}, lambda name, key: state[name][key])


TRAINED = ["embed.weight", "proj.weight", "proj.bias", "norm.weight", "norm.bias"]


def test_trained_names() -> None:
    """A tied weight stands once, under its first name."""
    assert [name for name, _ in trained(Small())] == TRAINED


def test_persistent_buffers_are_those_of_the_state_dict() -> None:
    model = Small()
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found = dict(persistent_buffers(model))
    assert set(found) == set(model.state_dict()) - parameters
    assert "scale" in found and "norm.running_mean" in found and "table" not in found
    assert found["scale"] is model.scale


OPTIMIZERS = [AdamW(lr=1e-2, weight_decay=0.1), Sgd(lr=0.1, momentum=0.9), Sgd(lr=0.1), Muon(lr=0.02, adamw_lr=1e-2)]


@pytest.mark.parametrize("config", OPTIMIZERS, ids=["adamw", "momentum", "sgd", "muon"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(config: Optim) -> None:
    through, stopped = OneDevice(config, seed=0), OneDevice(config, seed=0)
    for seed in range(3):
        assert through.step(seed) == stopped.step(seed)
    resumed = OneDevice(config, seed=5)
    resumed.trained_model.frozen.load_state_dict(stopped.trained_model.frozen.state_dict())
    resumed.step(9)  # its own state must not stay
    put_in(resumed, *read_out(stopped))
    assert [resumed.step(seed) for seed in range(3, 6)] == [through.step(seed) for seed in range(3, 6)]
    expected = dict(through.full_weights())
    for name, value in resumed.full_weights():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("fault", ["weights", "step", "exp_avg", "exp_avg_sq", "norm.running_mean"])
def test_forgetting_any_part_would_be_seen(fault: str) -> None:
    through = OneDevice(AdamW(lr=1e-2), seed=0)
    for seed in range(3):
        through.step(seed)
    weights, state = read_out(through)
    resumed = OneDevice(AdamW(lr=1e-2), seed=0)
    if fault == "weights":
        weights["proj.weight"] = dict(resumed.full_weights())["proj.weight"].clone()
    elif fault in weights:
        weights[fault] = torch.zeros_like(weights[fault])
    else:
        state["proj.weight"][fault] = torch.zeros_like(state["proj.weight"][fault])
    put_in(resumed, weights, state)
    through.step(3)
    resumed.step(3)
    after, expected = dict(resumed.full_weights()), dict(through.full_weights())
    assert any(not torch.equal(after[name], expected[name]) for name in expected)


def test_fused_adamw_keeps_one_counter_per_parameter() -> None:
    """The fused kernel adds to every counter in place: a shared one would count once per parameter."""
    resumed = OneDevice(AdamW(lr=1e-2), seed=0)
    resumed.step(0)
    weights, state = read_out(resumed)
    put_in(resumed, weights, state)
    resumed.step(1)
    counters = [resumed.optimizers[0].state[parameter]["step"] for _, parameter in trained(resumed.trained_model)]
    assert [counter.item() for counter in counters] == [2.0] * len(counters)
    assert len({counter.data_ptr() for counter in counters}) == len(counters)
    assert state["proj.weight"]["step"].item() == 1.0, "what was read must not move with the training"


def test_one_number_for_all_counters_is_copied() -> None:
    """A checkpoint of DeepSpeed's has one counter; the reader may return the same tensor for every name."""
    resumed = OneDevice(AdamW(lr=1e-2), seed=0)
    resumed.step(0)
    weights, state = read_out(resumed)
    shared = torch.tensor(7.0)
    for keys in state.values():
        keys["step"] = shared
    put_in(resumed, weights, state)
    resumed.step(1)
    for _, parameter in trained(resumed.trained_model):
        assert resumed.optimizers[0].state[parameter]["step"].item() == 8.0


def test_what_is_yielded_is_whole_and_on_the_cpu() -> None:
    value = whole(nn.Parameter(torch.ones(2, 3)))
    assert not value.requires_grad and value.device.type == "cpu"
    target = nn.Parameter(torch.zeros(2, 3))
    copy_whole(target, value.double())
    assert torch.equal(target, torch.ones(2, 3)) and target.dtype is torch.float32


@pytest.mark.parametrize("norm", [None, 1e-3, 1e9])
def test_clipping_equals_torchs_own(norm: float | None) -> None:
    ours, theirs = OneDevice(Sgd(lr=0.0), seed=0), OneDevice(Sgd(lr=0.0), seed=0)
    ours.step(0)
    theirs.step(0)
    expected = torch.nn.utils.clip_grad_norm_(theirs.trained_model.parameters(), 1e30 if norm is None else norm)
    found = ours.clip_gradients(norm)
    assert found is not None
    torch.testing.assert_close(found, expected)
    for (name, mine), (_, other) in zip(trained(ours.trained_model), trained(theirs.trained_model), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=name)
    assert ours.last_gradient_norm() is None


def test_parameters_without_gradient_do_not_count() -> None:
    ours = OneDevice(Sgd(lr=0.0), seed=0)
    ours.step(0)
    ours.trained_model.proj.weight.grad = None
    expected = sum((p.grad**2).sum() for p in ours.trained_model.parameters() if p.grad is not None)
    found = ours.clip_gradients(None)
    assert found is not None
    assert found.item() == pytest.approx(float(expected) ** 0.5)
