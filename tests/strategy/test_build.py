"""The Lightning strategy and precision that a recipe's words mean."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aitrain.config import RunConfig
from aitrain.config.optim import AdamW
from aitrain.config.strategy import Ddp, DeepspeedZero1, DeepspeedZero2, DeepspeedZero3, Fsdp, Strategy
from aitrain.config.trainer import Precision, Trainer
from aitrain.dist.ranks import Ranks
from aitrain.strategy.build import build_strategy, lightning_precision
from aitrain.strategy.deepspeed import DeepSpeedZero
from aitrain.strategy.fully_sharded import FullySharded
from aitrain.strategy.replicated import Replicated, SingleDevice

PAIR = Ranks(1, 2, 1, 2, "127.0.0.1", 29511, "torchrun")


@pytest.mark.parametrize(
    ("strategy", "ranks", "cls"),
    [
        (Ddp(), Ranks(), SingleDevice),
        (Ddp(), PAIR, Replicated),
        (Fsdp(), PAIR, FullySharded),
        (DeepspeedZero1(), PAIR, DeepSpeedZero),
        (DeepspeedZero2(), Ranks(), DeepSpeedZero),
        (DeepspeedZero3(), PAIR, DeepSpeedZero),
    ],
)
def test_strategy_of_a_recipe(
    run_config: Callable[..., RunConfig], strategy: Strategy, ranks: Ranks, cls: type
) -> None:
    built = build_strategy(run_config(strategy=strategy), ranks, "cpu")
    assert type(built) is cls
    if not isinstance(built, SingleDevice):
        assert built.cluster_environment is not None
        assert (built.cluster_environment.global_rank(), built.cluster_environment.world_size()) == (
            ranks.rank,
            ranks.world,
        )


@pytest.mark.parametrize("norm", [0.5, None])
def test_deepspeed_is_told_to_clip(run_config: Callable[..., RunConfig], norm: float | None) -> None:
    config = run_config(strategy=DeepspeedZero2(offload_optimizer=True), optim=AdamW(max_grad_norm=norm))
    built = build_strategy(config, PAIR, "cpu")
    assert isinstance(built, DeepSpeedZero) and isinstance(built.config, dict)
    assert built.config["gradient_clipping"] == (norm or 0.0)
    assert built.config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("strategy", "precision", "word"),
    [
        (Ddp(), Precision.fp32, "32-true"),
        (Ddp(), Precision.bf16, "bf16-mixed"),
        (DeepspeedZero3(), Precision.bf16, "32-true"),  # our own plugin computes in bf16
        (Fsdp(), Precision.bf16, "32-true"),  # FSDP2 mixes by its own policy
        (Fsdp(), Precision.fp32, "32-true"),
    ],
)
def test_precision(run_config: Callable[..., RunConfig], strategy: Strategy, precision: Precision, word: str) -> None:
    assert lightning_precision(run_config(strategy=strategy, trainer=Trainer(precision=precision))) == word
