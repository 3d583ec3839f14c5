"""What DeepSpeed is told; what it then does, on real ranks, is tested in tests/e2e."""

from __future__ import annotations

import pytest
import torch

from aitrain.config.strategy import DeepspeedZero1, DeepspeedZero2, DeepspeedZero3
from aitrain.strategy.deepspeed import DeepSpeedZero, engine_config, stage_of


@pytest.mark.parametrize(("config", "stage"), [(DeepspeedZero1(), 1), (DeepspeedZero2(), 2), (DeepspeedZero3(), 3)])
def test_stage(config: DeepspeedZero1, stage: int) -> None:
    assert stage_of(config) == stage
    assert engine_config(config, None)["zero_optimization"]["stage"] == stage


@pytest.mark.parametrize(
    ("config", "offloaded"),
    [
        (DeepspeedZero1(), set()),
        (DeepspeedZero1(offload_optimizer=True), {"offload_optimizer"}),
        (DeepspeedZero2(offload_optimizer=True), {"offload_optimizer"}),
        (DeepspeedZero3(offload_parameters=True), {"offload_param"}),
        (DeepspeedZero3(offload_optimizer=True, offload_parameters=True), {"offload_optimizer", "offload_param"}),
    ],
)
def test_offload(config: DeepspeedZero1, offloaded: set[str]) -> None:
    zero = engine_config(config, None)["zero_optimization"]
    assert {key for key in zero if key.startswith("offload")} == offloaded
    for key in offloaded:
        assert zero[key] == {"device": "cpu", "pin_memory": torch.cuda.is_available()}


@pytest.mark.parametrize(("norm", "told"), [(None, 0.0), (0.25, 0.25)])
def test_clipping(norm: float | None, told: float) -> None:
    assert engine_config(DeepspeedZero2(), norm)["gradient_clipping"] == told


def test_the_recipes_optimizer_is_taken_as_it_is() -> None:
    told = engine_config(DeepspeedZero3(offload_optimizer=True), 1.0)
    assert told["zero_allow_untested_optimizer"] is True
    assert told["zero_force_ds_cpu_optimizer"] is False, "DeepSpeed's CPU Adam needs a compiler where the run starts"


def test_clipping_is_left_to_the_engine() -> None:
    assert DeepSpeedZero(DeepspeedZero2(), 1.0).clip_gradients(1.0) is None
