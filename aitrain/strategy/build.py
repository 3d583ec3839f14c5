"""From the recipe's strategy to a Lightning strategy with access to its unsharded state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aitrain.config import RunConfig
from aitrain.config.strategy import DeepspeedZero1, Fsdp
from aitrain.config.trainer import Precision
from aitrain.dist.ranks import Ranks
from aitrain.strategy.environment import RankEnvironment

if TYPE_CHECKING:
    from aitrain.strategy.deepspeed import DeepSpeedZero
    from aitrain.strategy.fully_sharded import FullySharded
    from aitrain.strategy.replicated import Replicated, SingleDevice


def build_strategy(
    config: RunConfig, ranks: Ranks, accelerator: str
) -> SingleDevice | Replicated | FullySharded | DeepSpeedZero:
    """Build the strategy of a run.

    Args:
        config: The run.
        ranks: This process's place.
        accelerator: `cpu` or `cuda`.

    Returns:
        A Lightning strategy that is also a `StateAccess`.
    """
    environment = RankEnvironment(ranks)
    if isinstance(config.strategy, DeepspeedZero1):
        from aitrain.strategy.deepspeed import DeepSpeedZero

        bf16_on = accelerator if config.trainer.precision is Precision.bf16 else None
        return DeepSpeedZero(config.strategy, config.optim.max_grad_norm, bf16_on, cluster_environment=environment)
    if isinstance(config.strategy, Fsdp):
        from aitrain.strategy.fully_sharded import FullySharded

        strategy = FullySharded(config.strategy, config.trainer.precision is Precision.bf16, ranks.world)
        strategy.cluster_environment = environment
        return strategy
    from aitrain.strategy.replicated import Replicated, SingleDevice

    if ranks.world == 1:
        return SingleDevice(device="cuda:0" if accelerator == "cuda" else "cpu")
    return Replicated(cluster_environment=environment, gradient_as_bucket_view=True, static_graph=False)


def lightning_precision(config: RunConfig) -> str:
    """Return Lightning's word for the recipe's precision under the recipe's strategy.

    Args:
        config: The run.

    Returns:
        `32-true` or `bf16-mixed`; FSDP2 mixes by its own policy, and ZeRO by our plugin, and so both stay at `32-true`.
    """
    if config.trainer.precision is Precision.fp32 or isinstance(config.strategy, (Fsdp, DeepspeedZero1)):
        return "32-true"
    return "bf16-mixed"
