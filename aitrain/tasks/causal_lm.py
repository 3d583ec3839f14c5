"""Next-token training of a causal language model: supervised fine-tuning and continued pretraining share this step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn

from aitrain.config import RunConfig
from aitrain.data.batches import IGNORED
from aitrain.models.fused_check import FusedCheck
from aitrain.models.fused_head import counted_loss, summed_loss
from aitrain.optim.build import build_optimizer

if TYPE_CHECKING:
    from aitrain.models.fuse import FuseReport

# Shapes: B = sequences of a micro-batch, L = positions, K = positions kept, V = vocabulary.


class CausalLM(pl.LightningModule):
    """A causal language model under training.

    Args:
        config: The run.
        build: Builds the pretrained (or random) model; called once, inside the strategy's own way of building.
        adapt: Puts the adapter on; called once after `build`.
        world: Ranks of the run.
        accumulation: Micro-batches per rank and optimizer step.
        fuse: Let aitrain's fused ops replace what they can.
    """

    def __init__(
        self,
        config: RunConfig,
        build: Callable[[], nn.Module],
        adapt: Callable[[nn.Module], nn.Module],
        world: int,
        accumulation: int,
        fuse: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.model: nn.Module | None = None
        self._build, self._adapt = build, adapt
        self._ranks_times_accumulation = world * accumulation
        self.loss_sum: torch.Tensor | None = None
        self.fused: FuseReport | None = None
        self._fuse, self._fused = fuse, False

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> torch.Tensor:
        """Return the micro-batch's share of the global batch's mean loss.

        The loss is the sum over this micro-batch's trained tokens divided by the trained tokens of the *whole* global
        batch. Lightning divides what we return by the accumulation count and every strategy averages gradients over
        the ranks; multiplying by both undoes it: the gradient is exactly that of the mean over all trained tokens.

        Args:
            batch: `input_ids` and `labels`, int64 `(B, L)`, and `global_trained_tokens`, a number.
            batch_idx: Number of the micro-batch.

        Returns:
            Scalar to differentiate.
        """
        loss_sum = self._losses(batch, summed_loss)
        self.loss_sum = loss_sum.detach() if self.loss_sum is None else self.loss_sum + loss_sum.detach()
        return loss_sum * (self._ranks_times_accumulation / batch["global_trained_tokens"])

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> torch.Tensor:
        """Measure one batch of held-out data.

        Args:
            batch: `input_ids` and `labels`, int64 `(B, L)`.
            batch_idx: Number of the batch.

        Returns:
            float64 `(3,)`: sum of the losses, tokens predicted rightly, trained tokens.
        """
        return self._losses(batch, counted_loss)

    def _losses(
        self, batch: Mapping[str, Any], of_logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Run the model down to its losses: through its fused loss if it has one, else through logits."""
        if not self._fused:
            return of_logits(*self.trained_logits(batch))
        assert self.model is not None, "configure_model has not run"
        given, targets = self._kept(batch)
        out: torch.Tensor = self.model(**given, fused_targets=targets, valid_rows=batch.get("trained_tokens"))
        return out

    def trained_logits(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model and return logits only where some sequence of the micro-batch has a trained next token.

        Args:
            batch: `input_ids` and `labels`, int64 `(B, L)`, and `predicting`, int64 `(K,)`: the positions.

        Returns:
            Logits `(B, K, V)` and the tokens they should predict, `(B, K)`, `-100` where there is no loss.
        """
        assert self.model is not None, "configure_model has not run"
        given, targets = self._kept(batch)
        return self.model(**given).logits, targets

    def _kept(self, batch: Mapping[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
        """Return the model's arguments and the targets at the positions that some sequence is trained on.

        The head is most of a small model's work, and a prompt's logits are never used. Sequences are padded on the
        right, where causal attention never looks, so no attention mask is needed.
        """
        positions = batch["predicting"]
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)[:, positions]
        return {"input_ids": batch["input_ids"], "logits_to_keep": positions, "use_cache": False}, targets

    def configure_model(self) -> None:
        """Build the model once, in the strategy's way (sharded while it loads, where the strategy can)."""
        if self.model is not None:
            return
        building: Callable[[], AbstractContextManager[None]] = getattr(self.trainer.strategy, "building", nullcontext)
        with building():
            self.model = self._adapt(self._build())
        if self._fuse:
            from aitrain.models.fuse import fuse, has_fused_loss

            self.fused = fuse(self.model)
            self._fused = has_fused_loss(self.model)
        if self.config.trainer.activation_checkpointing:
            enable: Any = self.model.gradient_checkpointing_enable
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def check_fused(self) -> FusedCheck | None:
        """Compare the fused model with its unfused self on a few tokens; every rank calls this.

        Returns:
            What came of it, or None where no loss is fused.
        """
        if not self._fused:
            return None
        assert self.model is not None, "configure_model has not run"
        ids = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        with torch.no_grad():  # through the model's own call, where a sharding strategy has its hooks
            self.model(input_ids=ids, use_cache=False, fused_targets=ids)
        from aitrain.models.fuse import causal_model

        loss: Any = causal_model(self.model).fused_loss
        return cast(FusedCheck, loss.check)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the recipe's optimizer over what is trained."""
        assert self.model is not None, "configure_model has not run"
        return build_optimizer(self.config.optim, self.model.named_parameters(), self.device.type)
