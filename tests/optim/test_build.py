"""The optimizer that a recipe names, over the right parameters, with the right rates."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch import nn

from aitrain.config.optim import AdamW, AdamW8bit, FusedStep, Muon, Optim, Sgd
from aitrain.errors import MissingExtraError
from aitrain.optim.build import build_optimizer, full_shape, is_decayed, set_learning_rate
from aitrain.optim.fused_adamw import FusedAdamW
from aitrain.optim.muon import MuonWithAdamW


class Small(nn.Module):
    """One of every kind of parameter that a language model has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(7, 4)
        self.proj = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.frozen = nn.Linear(6, 6, bias=False)
        self.lm_head = nn.Linear(6, 7, bias=False)
        self.frozen.weight.requires_grad_(False)


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small()


def named_groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[set[str], dict[str, float]]]:
    """Return names and numbers of every group."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [({name_of[id(p)] for p in group["params"]}, group) for group in optimizer.param_groups]


MATRICES = {"embed_tokens.weight", "proj.weight", "lm_head.weight"}
VECTORS = {"proj.bias", "norm.weight", "norm.bias"}


@pytest.mark.parametrize("config", [AdamW(lr=1e-3, weight_decay=0.1), Sgd(lr=1e-3, weight_decay=0.1)])
def test_only_matrices_are_decayed(model: Small, config: Optim) -> None:
    (matrices, first), (vectors, second) = named_groups(model, build_optimizer(config, model.named_parameters(), "cpu"))
    assert (matrices, vectors) == (MATRICES, VECTORS)
    assert (first["weight_decay"], second["weight_decay"]) == (0.1, 0.0)
    assert first["lr"] == first["lr_peak"] == second["lr"] == second["lr_peak"] == 1e-3


def test_without_decay_there_is_one_group(model: Small) -> None:
    ((names, group),) = named_groups(model, build_optimizer(AdamW(lr=1e-3), model.named_parameters(), "cpu"))
    assert names == MATRICES | VECTORS
    assert (group["weight_decay"], group["lr_peak"]) == (0.0, 1e-3)


def test_no_group_is_empty(model: Small) -> None:
    """DeepSpeed cannot partition a group without parameters; LoRA trains matrices only."""
    only = [("proj.weight", model.proj.weight)]
    assert len(build_optimizer(AdamW(weight_decay=0.1), only, "cpu").param_groups) == 1


def test_adamw_has_the_recipes_numbers_and_is_fused(model: Small) -> None:
    config = AdamW(lr=1e-3, betas=[0.8, 0.9], eps=1e-6)
    (group,) = build_optimizer(config, model.named_parameters(), "cpu").param_groups
    assert (group["betas"], group["eps"], group["fused"]) == ((0.8, 0.9), 1e-6, True)


def test_sgd_has_the_recipes_momentum(model: Small) -> None:
    optimizer = build_optimizer(Sgd(momentum=0.7), model.named_parameters(), "cpu")
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.param_groups[0]["momentum"] == 0.7


def test_muon_takes_hidden_matrices_and_adamw_the_rest(model: Small) -> None:
    config = Muon(lr=0.02, adamw_lr=3e-4, weight_decay=0.1, momentum=0.9, nesterov=False, orthogonalise_steps=3)
    optimizer = build_optimizer(config, model.named_parameters(), "cpu")
    assert isinstance(optimizer, MuonWithAdamW)
    (hidden, muon), (ends, decayed), (vectors, plain) = named_groups(model, optimizer)
    assert hidden == {"proj.weight"}
    assert ends == {"embed_tokens.weight", "lm_head.weight"}
    assert vectors == VECTORS
    assert [group["kind"] for group in (muon, decayed, plain)] == ["muon", "adamw", "adamw"]
    assert [group["lr_peak"] for group in (muon, decayed, plain)] == [0.02, 3e-4, 3e-4]
    assert [group["weight_decay"] for group in (muon, decayed, plain)] == [0.1, 0.1, 0.0]
    assert (muon["momentum"], muon["nesterov"], muon["steps"]) == (0.9, False, 3)


def test_muon_without_any_hidden_matrix(model: Small) -> None:
    optimizer = build_optimizer(Muon(), [("norm.weight", model.norm.weight)], "cpu")
    assert [group["kind"] for group in optimizer.param_groups] == ["adamw"]


def test_8bit_of_bitsandbytes_names_its_extra(model: Small) -> None:
    if importlib.util.find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(MissingExtraError, match=r"optim.fused=never.*aitrain\[qlora\]"):
        build_optimizer(AdamW8bit(fused=FusedStep.never), model.named_parameters(), "cpu")


@pytest.mark.parametrize(("config", "states"), [(AdamW, "fp32"), (AdamW8bit, "8bit")])
def test_our_own_adamw_has_the_recipes_numbers(model: Small, config: type[AdamW], states: str) -> None:
    asked = config(lr=1e-3, betas=[0.8, 0.9], eps=1e-6, weight_decay=0.1, fused=FusedStep.always)
    optimizer = build_optimizer(asked, model.named_parameters(), "cpu")
    assert isinstance(optimizer, FusedAdamW)
    (matrices, first), (vectors, second) = named_groups(model, optimizer)
    assert (matrices, vectors, optimizer.states) == (MATRICES, VECTORS, states)
    assert (first["betas"], first["eps"], first["lr_peak"]) == ((0.8, 0.9), 1e-6, 1e-3)
    assert (first["weight_decay"], second["weight_decay"]) == (0.1, 0.0)


def test_the_cpu_keeps_torchs_adamw(model: Small) -> None:
    for fused in (FusedStep.auto, FusedStep.never):
        assert type(build_optimizer(AdamW(fused=fused), model.named_parameters(), "cpu")) is torch.optim.AdamW


def test_a_gpu_gets_ours_where_kernels_run(model: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    for kernels, expected in ((True, FusedAdamW), (False, torch.optim.AdamW)):
        monkeypatch.setattr("aitrain.optim.build.use_kernels", lambda tensor, kernels=kernels: kernels)
        monkeypatch.setattr("aitrain.optim.build.torch.empty", lambda *size, device: torch.zeros(*size))
        assert type(build_optimizer(AdamW(), model.named_parameters(), "cuda")) is expected
        assert type(build_optimizer(AdamW8bit(), model.named_parameters(), "cuda")) is FusedAdamW


def test_a_parameter_sharded_by_zero3_keeps_its_kind() -> None:
    """DeepSpeed leaves an empty tensor and the real shape in `ds_shape`."""
    parameter = nn.Parameter(torch.empty(0))
    assert not is_decayed(parameter)
    parameter.ds_shape = torch.Size([4, 6])  # type: ignore[attr-defined]
    assert full_shape(parameter) == (4, 6)
    assert is_decayed(parameter)


def test_every_group_follows_the_schedule_from_its_own_peak(model: Small) -> None:
    optimizer = build_optimizer(Muon(lr=0.02, adamw_lr=3e-4), model.named_parameters(), "cpu")
    for factor in (0.5, 0.0, 0.25):  # each from the peak, not from the last
        assert set_learning_rate(optimizer, factor) == 0.02 * factor
        assert [group["lr"] for group in optimizer.param_groups] == [0.02 * factor, 3e-4 * factor]


def test_rate_of_an_optimizer_without_groups_is_no_number() -> None:
    class Empty:
        param_groups: list[dict[str, float]] = []

    assert math.isnan(set_learning_rate(Empty(), 1.0))  # type: ignore[arg-type]
