"""A causal model's loss without its logits: the head's product and the cross entropy as one op, inside the model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn

from aitrain.models.fused_check import FusedCheck, Switch, compared
from aitrain.ops.cross_entropy.terms import LossTerms
from aitrain.ops.linear_loss.measure import linear_predictions
from aitrain.ops.linear_loss.op import linear_cross_entropy

IGNORED = -100
CAUSAL = ("ForCausalLM", "LMHeadModel")
"""Class names of transformers for a decoder with a head."""
_PROBE_TOKENS = 8


@dataclass
class FusedLoss:
    """Replaces a causal model's `forward`, which it calls if no fused loss is requested.

    Attributes:
        original: The model's own forward.
        terms: Soft-cap and scale that the model's own forward applies to its logits.
        switch: Off: the model computes without fused ops.
        check: Comparison of the fused loss with the unfused one; None until the first call.
    """

    original: Callable[..., Any]
    terms: LossTerms
    switch: Switch
    check: FusedCheck | None = None

    @classmethod
    def of(cls, model: Any, switch: Switch) -> FusedLoss | str:
        """Prepare the fused loss of a model.

        Args:
            model: A Hugging Face causal language model.
            switch: Of all its fused ops.

        Returns:
            The new forward, not yet in place, or why there is none.
        """
        if not type(model).__name__.endswith(CAUSAL):
            return f"{type(model).__name__} is not a causal language model"
        head: Any = model.get_output_embeddings()
        if type(head) is not nn.Linear:
            return f"the head is a {type(head).__name__}, not a plain linear layer"
        decoder = model.get_decoder()
        if decoder is None or decoder is model:
            return "the model does not separate its decoder from its head"
        config = model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        terms = LossTerms(
            logit_scale=float(scale), softcap=float(getattr(config, "final_logit_softcapping", None) or 0)
        )
        layer: Any = head
        layer.forward = MethodType(_head_forward(layer.forward), layer)
        return cls(model.forward, terms, switch)

    def put_into(self, model: nn.Module) -> None:
        """Make this the model's `forward`, with the signature of the old one, which `generate` looks at."""
        run = self.forward

        @functools.wraps(self.original)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return run(self, *args, **kwargs)

        model.forward = MethodType(forward, model)  # type: ignore[method-assign]
        model.fused_loss = self  # type: ignore[assignment]

    def forward(
        self,
        model: Any,
        *args: Any,
        fused_targets: torch.Tensor | None = None,
        valid_rows: int | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Run the model; with `fused_targets`, down to the loss.

        Args:
            model: The causal model.
            args: For the model.
            fused_targets: int64 `(B, K)`, the token that each kept position should predict, or -100.
            valid_rows: How many targets are not -100, if the caller knows it without asking the GPU.
            logits_to_keep: As the model takes it: the positions.
            kwargs: For the model.

        Returns:
            What the model returns; with `fused_targets` and gradients the sum of the losses, a scalar; with
            `fused_targets` and no gradients float64 `(3,)`: sum of the losses, tokens predicted rightly, tokens.
        """
        if fused_targets is None:
            return self.original(*args, logits_to_keep=logits_to_keep, **kwargs)
        if self.check is None:
            self.check = self._compared(model)
        if not self.check.agrees:
            logits = self.original(*args, logits_to_keep=logits_to_keep, **kwargs).logits
            return (
                summed_loss(logits, fused_targets) if torch.is_grad_enabled() else counted_loss(logits, fused_targets)
            )
        given = {"fused_targets": fused_targets, "valid_rows": valid_rows, "terms": self.terms}
        return self._loss(model, given, logits_to_keep, *args, **kwargs)

    def _loss(
        self, model: Any, given: dict[str, Any], logits_to_keep: int | torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        # peft hands on arguments that only a head's own loss knows
        kept = {key: value for key, value in kwargs.items() if value is not None and key != "labels"}
        hidden = model.get_decoder()(*args, **kept)[0]
        if torch.is_tensor(logits_to_keep):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        out: torch.Tensor = model.get_output_embeddings()(hidden, **given)
        return out

    @torch.no_grad()
    def _compared(self, model: Any) -> FusedCheck:
        """Compare the mean loss of a few tokens, every op fused and every op unfused."""
        weight = model.get_input_embeddings().weight
        classes = model.config.get_text_config().vocab_size
        ids = (torch.arange(_PROBE_TOKENS, device=weight.device) * 7 % classes)[None]
        targets = ids.roll(-1, dims=1)

        def unfused() -> torch.Tensor:
            return counted_loss(self.original(input_ids=ids, use_cache=False).logits, targets)[0] / _PROBE_TOKENS

        def fused() -> torch.Tensor:
            given = {"fused_targets": targets, "terms": self.terms}
            return self._loss(model, given, 0, input_ids=ids, use_cache=False)[0] / _PROBE_TOKENS

        return compared(self.switch, unfused, fused, weight.dtype, weight.device)


def summed_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the sum of the losses of given logits.

    Args:
        logits: `(B, K, V)`.
        targets: int64 `(B, K)`, -100 where there is no loss.
    """
    return nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def counted_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return float64 `(3,)`: sum of the losses, tokens predicted rightly, tokens that count.

    Args:
        logits: `(B, K, V)`.
        targets: int64 `(B, K)`, -100 where there is no loss.
    """
    counted = targets != IGNORED
    right = (logits.argmax(dim=-1) == targets) & counted
    return torch.stack([summed_loss(logits, targets).double(), right.sum().double(), counted.sum().double()])


def _head_forward(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a linear layer's forward that also computes the loss if it is given targets.

    The loss is computed in the layer's own forward because that is where a sharding strategy has gathered its weight.
    """

    def forward(
        self: nn.Linear,
        hidden: torch.Tensor,
        fused_targets: torch.Tensor | None = None,
        valid_rows: int | None = None,
        terms: LossTerms | None = None,
    ) -> torch.Tensor:
        if fused_targets is None:
            return original(hidden)
        shared: dict[str, Any] = {"bias": self.bias, "terms": terms, "valid_rows": valid_rows}
        if torch.is_grad_enabled():
            return linear_cross_entropy(hidden, self.weight, fused_targets, reduction="sum", **shared)
        losses, best = linear_predictions(hidden, self.weight, fused_targets, **shared)
        counted = fused_targets != IGNORED
        right = (best == fused_targets) & counted
        return torch.stack([losses.double().sum(), right.sum().double(), counted.sum().double()])

    return forward
