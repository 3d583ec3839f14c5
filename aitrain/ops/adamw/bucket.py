"""What one launch works on: tensors of the same types, with the numbers that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from aitrain.errors import ShapeError
from aitrain.ops.adamw.codes import blocks_of

FLOATS = (torch.float32, torch.bfloat16)
GRANULE = 8
"""Elements that one thread handles and that share one draw of random bits; offsets are multiples of it."""


@dataclass
class Bucket:
    """Parameters, gradients and moments of one step, all contiguous and on one device.

    Bytes per parameter, gradient included: fp32 16 (4 + 4 + 4 + 4); bf16 with fp32 moments 12 (2 + 2 + 4 + 4); bf16
    with bf16 moments 8; bf16 with 8-bit moments 6.03 (2 + 2 + 1 + 1 + 2 scales of 4 bytes per 256 elements).

    Attributes:
        params: fp32 or bf16; written.
        grads: fp32 or bf16, of the shapes of `params`; never written.
        exp_avgs: First moments: fp32, bf16 or uint8; written.
        exp_avg_sqs: Second moments, as `exp_avgs`.
        exp_avg_scales: fp32, one per block of 256 elements, with uint8 moments; else empty.
        exp_avg_sq_scales: As `exp_avg_scales`.
        offsets: Number of each parameter's first element among all elements of the optimizer: where its random bits
            begin, so that they depend neither on the bucket nor on the shard.
    """

    params: Sequence[torch.Tensor]
    grads: Sequence[torch.Tensor]
    exp_avgs: Sequence[torch.Tensor]
    exp_avg_sqs: Sequence[torch.Tensor]
    exp_avg_scales: Sequence[torch.Tensor] = ()
    exp_avg_sq_scales: Sequence[torch.Tensor] = ()
    offsets: Sequence[int] = field(default_factory=list)

    @property
    def quantised(self) -> bool:
        """Whether the moments are in 8 bits."""
        return len(self.exp_avg_scales) > 0

    def check(self) -> None:
        """Refuse what no kernel handles.

        Raises:
            ShapeError: Lengths, types, sizes or memory layouts do not fit.
        """
        lists = [self.grads, self.exp_avgs, self.exp_avg_sqs, self.offsets]
        if self.quantised:
            lists += [self.exp_avg_scales, self.exp_avg_sq_scales]
        if any(len(entries) != len(self.params) for entries in lists):
            raise ShapeError(f"adamw: {len(self.params)} parameters need as many gradients, moments and offsets")
        of_moments = (torch.uint8,) if self.quantised else FLOATS
        for tensors, allowed in (
            (self.params, (*FLOATS, torch.float64)),
            (self.grads, (*FLOATS, torch.float64)),
            (self.exp_avgs, (*of_moments, torch.float64)),
            (self.exp_avg_sqs, (*of_moments, torch.float64)),
        ):
            for tensor, param in zip(tensors, self.params, strict=True):
                if tensor.dtype not in allowed or tensor.dtype != tensors[0].dtype:
                    raise ShapeError(
                        f"adamw: {tensor.dtype} among {tensors[0].dtype}: use one of fp32, bf16 per bucket"
                    )
                if tensor.shape != param.shape or not tensor.is_contiguous() or tensor.device != param.device:
                    raise ShapeError(
                        f"adamw: a tensor of {tuple(tensor.shape)} for a parameter of {tuple(param.shape)}: moments "
                        "and gradients have the parameter's shape and device and are contiguous"
                    )
        for scales in (self.exp_avg_scales, self.exp_avg_sq_scales):
            for scale, param in zip(scales, self.params, strict=False):
                if scale.shape != (blocks_of(param.numel()),) or scale.dtype != torch.float32:
                    raise ShapeError(
                        f"adamw: scales are fp32 of shape ({blocks_of(param.numel())},), one per 256 elements"
                    )


@dataclass(frozen=True)
class Numbers:
    """Hyperparameters of one step, the same for all tensors of a group.

    Attributes:
        lr: Learning rate.
        beta1: Decay rate of the first moment.
        beta2: Decay rate of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        max_norm: 2-norm that the gradients are scaled down to; None = not.
        stochastic: Round bf16 values at random, up with the probability of the remainder.
        seed: Of the random bits; the step and the element complete the key.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    max_norm: float | None = None
    stochastic: bool = True
    seed: int = 0


CLIP, DECAY, STEP_SIZE, INVERSE_ROOT, STEP, NORM = range(6)
"""Places in the coefficients, a small fp32 tensor on the device that the kernels read: the factor of the gradients,
the factor of the parameters, `lr / (1 - beta1**t)`, `1 / sqrt(1 - beta2**t)`, `t`, and the 2-norm before clipping."""

COEFFICIENTS = 8
