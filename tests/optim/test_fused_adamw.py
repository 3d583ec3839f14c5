"""Our AdamW as an optimizer: torch's numbers, states that come back bit for bit, shards, partitions."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from aitrain.errors import ShapeError
from aitrain.optim.fused_adamw import FusedAdamW

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "8bit": torch.bfloat16}
"""States -> type of the parameters they are tried with."""


class Net(nn.Module):
    """One matrix above the size from which moments are in 8 bits, and small tensors."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.up = nn.Linear(33, 128)
        self.down = nn.Linear(128, 9, bias=False)
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


def learn(
    net: nn.Module, optimizer: torch.optim.Optimizer, step: int, before: Callable[[], object] = lambda: None
) -> float:
    """Take one step of regression on data that depends on the step alone."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(32, 33, generator=generator)
    target = torch.stack([x[:, i] * x[:, i + 1] for i in range(9)], 1)
    dtype = next(net.parameters()).dtype
    loss = (net(x.to(dtype)).float() - target).square().mean()
    optimizer.zero_grad()
    loss.backward()
    before()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("way", ["reference", "triton"])
@pytest.mark.parametrize("max_norm", [None, 0.05])
def test_twenty_steps_equal_torch(way: str, max_norm: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITRAIN_OPS", way)
    nets = [Net(), Net()]
    ours = FusedAdamW(nets[0].parameters(), lr=1e-2, weight_decay=0.1, max_grad_norm=max_norm)
    torchs = torch.optim.AdamW(nets[1].parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    steps = 20 if way == "reference" else 5
    for step in range(steps):
        learn(nets[0], ours, step)
        norms: list[torch.Tensor] = []

        def clip(norms: list[torch.Tensor] = norms) -> None:
            if max_norm is not None:
                norms.append(nn.utils.clip_grad_norm_(nets[1].parameters(), max_norm))

        learn(nets[1], torchs, step, clip)
        if max_norm is not None:
            assert ours.grad_norm is not None
            torch.testing.assert_close(ours.grad_norm, norms[0], rtol=1e-5, atol=0)
    for mine, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        # an update is lr times a quotient near 1: 16 roundings of it and 2 of the weight per step; the gradients of two
        # runs drift apart as their weights do, which the factor 8 covers
        bound = steps * 8 * 2**-24 * (2 * other.abs() + 16 * 1e-2)
        assert ((mine - other).abs() <= bound).all()


@pytest.mark.parametrize("states", KINDS)
def test_a_resumed_run_is_bit_equal(states: str) -> None:
    def build(seed: int) -> tuple[Net, FusedAdamW]:
        net = Net(seed, KINDS[states])
        groups = [{"params": [net.up.weight, net.down.weight]}, {"params": [net.up.bias], "weight_decay": 0.0}]
        return net, FusedAdamW(groups, lr=1e-2, states=states, max_grad_norm=1.0, seed=3)

    net, optimizer = build(0)
    for step in range(3):
        learn(net, optimizer, step)
    weights, state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    expected = [learn(net, optimizer, step) for step in range(3, 6)]

    again, resumed = build(1)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert [learn(again, resumed, step) for step in range(3, 6)] == expected
    assert all(map(torch.equal, net.parameters(), again.parameters()))
    for mine, other in zip(net.parameters(), again.parameters(), strict=True):
        assert optimizer.state[mine].keys() == resumed.state[other].keys()
        for name, value in optimizer.state[mine].items():
            assert value.dtype == resumed.state[other][name].dtype
            assert torch.equal(value, resumed.state[other][name])


def test_states_have_the_names_and_types_they_should() -> None:
    net = Net(dtype=torch.bfloat16)
    optimizer = FusedAdamW(net.parameters(), states="8bit")
    learn(net, optimizer, 0)
    big, small = optimizer.state[net.up.weight], optimizer.state[net.up.bias]
    assert {name: value.dtype for name, value in big.items()} == {
        "step": torch.float32,
        "exp_avg": torch.uint8,
        "exp_avg_sq": torch.uint8,
        "exp_avg_scale": torch.float32,
        "exp_avg_sq_scale": torch.float32,
    }
    assert big["exp_avg"].shape == net.up.weight.shape
    assert {name: value.dtype for name, value in small.items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq"), torch.float32
    )
    assert big["step"] is small["step"], "one counter on the device serves all"
    size = net.up.weight.numel()
    in_all = 2 * size * 2 + sum(x.numel() * x.element_size() for name, x in big.items() if name != "step")
    # 4224 elements in 17 blocks, of which the last is half full: 6 bytes and 8 per block
    assert in_all == 6 * size + 8 * 17


def test_eight_bits_learn_like_fp32() -> None:
    """200 steps from three starts: the mean loss of the last 50 lies within the spread of fp32 AdamW's own starts."""
    ends: dict[str, list[float]] = {}
    for name in ("torch", "8bit", "bf16"):
        for seed in range(3):
            net = Net(seed, torch.bfloat16 if name == "bf16" else torch.float32)
            optimizer = (
                torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.0)
                if name == "torch"
                else FusedAdamW(net.parameters(), lr=3e-3, weight_decay=0.0, states=name)
            )
            losses = [learn(net, optimizer, step) for step in range(200)]
            ends.setdefault(name, []).append(sum(losses[-50:]) / 50)
            assert ends[name][-1] < 0.7 * losses[0], "nothing was learnt, so nothing is compared"
    spread = max(ends["torch"]) - min(ends["torch"])
    for name in ("8bit", "bf16"):
        for mine, other in zip(ends[name], ends["torch"], strict=True):
            assert abs(mine - other) <= max(spread, 0.03 * other), (name, ends)


def test_small_updates_survive_in_bf16() -> None:
    """A step of 1e-4 of the weight is far below half a unit of bf16, 2^-9: rounding to nearest loses every one."""
    moved = {}
    for stochastic in (True, False):
        weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = FusedAdamW([weight], lr=1e-4, weight_decay=0.0, stochastic_rounding=stochastic)
        for _ in range(100):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[stochastic] = 1 - weight.double().mean().item()
    assert moved[False] == 0
    # each of 4096 x 100 draws errs by less than a unit of 2^-8: 5 standard errors
    assert abs(moved[True] - 0.01) < 5 * 2**-8 * (100 / 4096) ** 0.5


def test_clipping_ahead_of_the_step_is_the_same() -> None:
    """Strategies clip before the step and log the norm."""
    nets = [Net(), Net()]
    first = FusedAdamW(nets[0].parameters(), lr=1e-2, max_grad_norm=0.05)
    second = FusedAdamW(nets[1].parameters(), lr=1e-2)
    for step in range(3):
        learn(nets[0], first, step)
        norms: list[torch.Tensor] = []
        learn(nets[1], second, step, lambda norms=norms: norms.append(second.clip_gradients(0.05)))  # type: ignore[misc]
        assert first.grad_norm is not None
        torch.testing.assert_close(norms[0], first.grad_norm)
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


def test_measuring_alone_does_not_clip() -> None:
    nets = [Net(), Net()]
    first = FusedAdamW(nets[0].parameters(), lr=1e-2)
    second = FusedAdamW(nets[1].parameters(), lr=1e-2)
    learn(nets[0], first, 0)
    learn(nets[1], second, 0, lambda: second.clip_gradients(None))
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


def test_a_parameter_that_joins_late_counts_from_its_own_start() -> None:
    """Bias correction of step 3 on moments of step 1 would make its first update three times too large."""
    ours, torchs = (nn.ParameterList([torch.ones(8), torch.ones(8)]) for _ in range(2))
    mine, other = FusedAdamW(ours, lr=1e-2), torch.optim.AdamW(torchs, lr=1e-2)
    for step in range(4):
        for params, optimizer in ((ours, mine), (torchs, other)):
            params[0].grad = torch.full((8,), 0.5)
            params[1].grad = torch.full((8,), 2.0) if step >= 2 else None
            optimizer.step()
    for one, two in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=0)
    assert [float(mine.state[param]["step"]) for param in ours] == [4, 2]


def test_loaded_counters_are_shared_again() -> None:
    net = Net()
    optimizer = FusedAdamW(net.parameters())
    learn(net, optimizer, 0)
    for state in optimizer.state.values():  # as a checkpoint puts them: a copy each
        state["step"] = state["step"].clone()
    learn(net, optimizer, 1)
    assert {id(state["step"]) for state in optimizer.state.values()} == {id(optimizer.state[net.up.weight]["step"])}
    assert float(optimizer.state[net.up.weight]["step"]) == 2


def test_new_parameters_are_taken_in() -> None:
    net = Net()
    optimizer = FusedAdamW([net.up.weight], lr=1e-2)
    learn(net, optimizer, 0)
    before = net.down.weight.detach().clone()
    optimizer.add_param_group({"params": [net.down.weight]})
    learn(net, optimizer, 1)
    assert not torch.equal(before, net.down.weight)


def test_the_rate_follows_the_schedule() -> None:
    net = Net()
    optimizer = FusedAdamW(net.parameters(), lr=1e-2, weight_decay=0.0)
    learn(net, optimizer, 0)
    optimizer.param_groups[0]["lr"] = 0.0
    before = [param.detach().clone() for param in net.parameters()]
    learn(net, optimizer, 1)
    assert all(map(torch.equal, before, net.parameters()))


def test_unknown_states_are_refused() -> None:
    with pytest.raises(ShapeError, match="fp32, bf16 or 8bit"):
        FusedAdamW([nn.Parameter(torch.zeros(1))], states="4bit")


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = FusedAdamW(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ShapeError, match="sparse=False"):
        optimizer.step()


def _port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _join(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)


def _shard_and_learn(rank: int, port: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard

    _join(rank, port)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        net = Net(dtype=dtype)
        fully_shard(net)
        optimizer = FusedAdamW(net.parameters(), lr=1e-2, max_grad_norm=0.05, seed=1)
        for step in range(3):
            learn(net, optimizer, step)
        assert optimizer.grad_norm is not None
        found[str(dtype)] = [optimizer.grad_norm, *(param.full_tensor().detach() for param in net.parameters())]
        moments = [optimizer.state[param]["exp_avg"].full_tensor() for param in net.parameters()]
        found[str(dtype)] += moments
    with pytest.raises(ShapeError, match="strategy=ddp"):
        learn(net, FusedAdamW(net.parameters(), states="8bit"), 0)
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_shards_equal_one_device(tmp_path: Path) -> None:
    """Norm, clip, random bits: 9 rows over 2 ranks, so the shards are unequal. All ranks see the same data."""
    mp.spawn(_shard_and_learn, args=(_port(), str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for dtype in (torch.float32, torch.bfloat16):
        net = Net(dtype=dtype)
        optimizer = FusedAdamW(net.parameters(), lr=1e-2, max_grad_norm=0.05, seed=1)
        for step in range(3):
            learn(net, optimizer, step)
        expected = [optimizer.grad_norm, *net.parameters()]
        expected += [optimizer.state[param]["exp_avg"] for param in net.parameters()]
        for mine, other in zip(found[str(dtype)], expected, strict=True):
            assert other is not None
            torch.testing.assert_close(mine, other.detach(), rtol=1e-4 if dtype == torch.float32 else 2**-7, atol=1e-6)
            if mine.dtype == torch.bfloat16:  # with other random bits every second weight would differ
                assert (mine != other).sum() <= max(1, other.numel() // 50)


def _zero_and_learn(rank: int, port: int, folder: str) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    _join(rank, port)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_SIZE="2")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    found = {}
    for stage in (1, 3):
        net = Net()
        config = {
            "train_micro_batch_size_per_gpu": 32,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.05,
        }
        optimizer = FusedAdamW(net.parameters(), lr=1e-2)
        engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config=config, dist_init_required=False)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(32, 33, generator=generator)
            target = torch.stack([x[:, i] * x[:, i + 1] for i in range(9)], 1)
            engine.backward((engine(x) - target).square().mean())
            engine.step()
        with deepspeed.zero.GatheredParameters(list(net.parameters()), enabled=stage == 3):
            found[stage] = [param.detach().clone() for param in net.parameters()]
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_deepspeeds_partitions_equal_one_device(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    mp.spawn(_zero_and_learn, args=(_port(), str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    net = Net()
    optimizer = FusedAdamW(net.parameters(), lr=1e-2, max_grad_norm=0.05)
    for step in range(3):
        learn(net, optimizer, step)
    for stage, params in found.items():
        for mine, other in zip(params, net.parameters(), strict=True):
            torch.testing.assert_close(mine, other.detach(), rtol=1e-4, atol=1e-5, msg=f"stage {stage}")
