"""How autograd and torch.compile see the chunked engine: one loss with its gradients, and statistics with theirs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from aitrain.ops.cross_entropy.dispatch import times_upstream_
from aitrain.ops.cross_entropy.rows import Statistics, losses_of
from aitrain.ops.cross_entropy.terms import LossTerms
from aitrain.ops.linear_loss import chunks
from aitrain.ops.linear_loss.chunks import Gradients, Head, Wanted
from aitrain.ops.registration import register


class Options(NamedTuple):
    """Arguments that are not tensors, as plain numbers for an op's schema."""

    terms: tuple[float, float, float, float]
    """`logit_scale`, `softcap`, `label_smoothing`, `z_loss`."""

    chunk_bytes: int
    valid_rows: int | None
    dtype: torch.dtype
    """Type of the matrix products."""

    mean: bool = True
    """Whether the statistics hold the mean of each row's logits."""

    entropy: bool = True

    def head(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Head:
        """Return the layer, its weight in the type of the matrix products."""
        bias = None if bias is None else bias.to(self.dtype)
        return Head(weight.to(self.dtype), bias, LossTerms(*self.terms), self.chunk_bytes, self.valid_rows)


class SummedLoss(torch.autograd.Function):
    """`scale * sum(losses)`; its gradients are made in the forward pass, where the logits are available.

    So the backward pass needs no weight, which a sharding strategy has released by then. A second backward pass
    recomputes them from the weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        scale: torch.Tensor,
        options: Options,
        wanted: Wanted,
    ) -> torch.Tensor:
        """Compute the loss and keep its gradients."""
        ctx.options, ctx.wanted = options, wanted
        losses, ctx.gradients = _loss(hidden, weight, bias, targets, scale, options, ctx.wanted)
        ctx.save_for_backward(hidden, weight, bias, targets, scale)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:
        """Return the gradients, times the upstream one."""
        gradients, ctx.gradients = ctx.gradients, None
        hidden, weight, bias, targets, scale = ctx.saved_tensors
        if gradients is None:
            gradients = _loss(hidden, weight, bias, targets, scale, ctx.options, ctx.wanted)[1]
        for gradient in gradients:
            if gradient is not None:
                times_upstream_(gradient, upstream)
        return *_typed(gradients, hidden, weight, bias), None, None, None, None


class RowStatistics(torch.autograd.Function):
    """The statistics of every row; the backward pass makes the logits a second time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        options: Options,
    ) -> tuple[torch.Tensor, ...]:
        """Measure the rows."""
        out = _measure(hidden, weight, bias, targets, options)
        ctx.options, ctx.wanted = options, (*ctx.needs_input_grad[:3],)
        ctx.save_for_backward(hidden, weight, bias, targets, *out)
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
        """Compute the gradients of hidden, weight and bias."""
        hidden, weight, bias, targets, *saved = ctx.saved_tensors
        gradients = _measure_backward(
            hidden, weight, bias, targets, Statistics(*saved), Statistics(*upstream), ctx.options, ctx.wanted
        )
        return *_typed(gradients, hidden, weight, bias), None, None


def summed_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    scale: torch.Tensor,
    options: Options,
) -> torch.Tensor:
    """Return `scale * sum(losses)`, differentiable, eager or compiled.

    Args:
        hidden: `(M, H)`.
        weight: `(V, H)`.
        bias: `(V,)` or None.
        targets: int64 `(M,)`, -1 = ignored.
        scale: Scalar, not differentiated.
        options: The rest.
    """
    if options.dtype == torch.float16:
        # one of many rows has a gradient that vanishes in a half until the loss scale of mixed precision lifts it:
        # autograd brings both factors together before they reach it
        return scale * _summed(hidden, weight, bias, targets, torch.ones_like(scale), options)
    return _summed(hidden, weight, bias, targets, scale, options)


def _summed(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    scale: torch.Tensor,
    options: Options,
) -> torch.Tensor:
    grad = torch.is_grad_enabled()  # needs_input_grad is also true without
    wanted = (grad and hidden.requires_grad, grad and weight.requires_grad, False)
    wanted = (*wanted[:2], grad and bias is not None and bias.requires_grad)
    if not dispatched(hidden):
        return SummedLoss.apply(hidden, weight, bias, targets, scale, options, wanted)
    out: torch.Tensor = _loss_op(hidden, weight, bias, targets, scale, *_flat(options)[:4], list(wanted))[0]
    return out


def row_statistics(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, options: Options
) -> Statistics:
    """Return the statistics of every row, differentiable, eager or compiled.

    Args:
        hidden: `(M, H)`.
        weight: `(V, H)`.
        bias: `(V,)` or None.
        targets: int64 `(M,)`, -1 = ignored.
        options: The rest.
    """
    if dispatched(hidden):
        return Statistics(*_statistics_op(hidden, weight, bias, targets, *_flat(options)))
    return Statistics(*RowStatistics.apply(hidden, weight, bias, targets, options))


def dispatched(hidden: torch.Tensor) -> bool:
    """Return whether the registered ops are needed: by the compiler, and by fake tensors, which have shapes alone.

    Args:
        hidden: An input.
    """
    return torch.compiler.is_compiling() or isinstance(hidden, FakeTensor)


def _without_autocast(tensor: torch.Tensor) -> torch.autocast:
    """Return a context in which products keep their types; autocast would put the float32 sums back into 16 bits."""
    return torch.autocast(tensor.device.type, enabled=False)


def _loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    scale: torch.Tensor,
    options: Options,
    wanted: Wanted,
) -> tuple[torch.Tensor, Gradients]:
    if any(wanted):
        with _without_autocast(hidden):
            return chunks.forward(hidden.to(options.dtype), options.head(weight, bias), targets, scale, wanted)
    terms = LossTerms(*options.terms)
    wants = options._replace(mean=terms.label_smoothing != 0.0, entropy=False)
    losses = losses_of(_measure(hidden, weight, bias, targets, wants), terms)
    return losses * scale, Gradients(None, None, None)


def _measure(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    options: Options,
) -> Statistics:
    head, rows = options.head(weight, bias), hidden.to(options.dtype)
    with _without_autocast(hidden):
        return chunks.statistics(rows, head, targets, options.mean, options.entropy)


def _measure_backward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    saved: Statistics,
    upstream: Statistics,
    options: Options,
    wanted: Wanted,
) -> Gradients:
    upstream = Statistics(*(x.contiguous() for x in upstream))
    head, rows = options.head(weight, bias), hidden.to(options.dtype)
    with _without_autocast(hidden):
        return chunks.backward(rows, head, targets, saved, upstream, wanted, options.mean, options.entropy)


def _typed(gradients: Gradients, *inputs: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients in the types of what they belong to."""
    pairs = zip(gradients, inputs, strict=True)
    return tuple(None if g is None or x is None else g.to(x.dtype) for g, x in pairs)


# --- the same for the compiler, which keeps neither named tuples nor None among an op's outputs ---

OPTIONS = "float[] terms, int chunk_bytes, int? valid_rows, ScalarType dtype"
_MEASURED = f"{OPTIONS}, bool with_mean, bool with_entropy"
TENSORS = "Tensor hidden, Tensor weight, Tensor? bias, Tensor targets"


def _flat(options: Options) -> tuple[Any, ...]:
    return list(options.terms), *options[1:]


def _unflat(flat: tuple[Any, ...]) -> Options:
    return Options(tuple(flat[0]), *flat[1:])  # type: ignore[arg-type]


def _filled(gradients: tuple[torch.Tensor | None, ...], device: torch.device) -> list[torch.Tensor]:
    """Return the gradients, an empty tensor for each that is not there."""
    return [torch.empty(0, device=device) if g is None else g for g in gradients]


def _run_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    scale: torch.Tensor,
    *rest: Any,
) -> tuple[torch.Tensor, ...]:
    *flat, wanted = rest
    losses, gradients = _loss(hidden, weight, bias, targets, scale, _unflat(tuple(flat)), tuple(wanted))
    # as wide as they were summed: in a half, a sum over the rows may be infinite until the upstream gradient shrinks it
    return losses.sum(), *_filled(gradients, hidden.device)


def _fake_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    scale: torch.Tensor,
    *rest: Any,
) -> tuple[torch.Tensor, ...]:
    *flat, wanted = rest
    wide = _wide(flat[3])
    like = (hidden, weight, bias), wanted, (flat[3], wide, wide)
    return hidden.new_empty((), dtype=wide), *_fake_gradients(*like)


def _fake_gradients(
    inputs: tuple[torch.Tensor | None, ...], wanted: Wanted, dtypes: tuple[torch.dtype | None, ...]
) -> list[torch.Tensor]:
    device = inputs[0].device  # type: ignore[union-attr]
    return [
        torch.empty(x.shape, dtype=dtype, device=device) if x is not None and want else torch.empty(0, device=device)
        for x, want, dtype in zip(inputs, wanted, dtypes, strict=True)
    ]


def _setup_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.dtypes = [x.dtype if want else None for x, want in zip(inputs[:3], inputs[-1], strict=True)]
    ctx.save_for_backward(*output[1:])


def _backward_loss(ctx: Any, upstream: torch.Tensor, *_: torch.Tensor) -> tuple[Any, ...]:
    pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    return *(None if dtype is None else (g * upstream).to(dtype) for g, dtype in pairs), *([None] * 7)


def _run_statistics(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, *flat: Any
) -> tuple[torch.Tensor, ...]:
    # rows of one tensor would share its memory, which an op's outputs must not
    return tuple(x.clone() for x in _measure(hidden, weight, bias, targets, _unflat(flat)))


def _fake_statistics(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, *flat: Any
) -> tuple[torch.Tensor, ...]:
    return tuple(hidden.new_empty(len(hidden), dtype=_wide(flat[3])) for _ in range(4))


def _setup_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.flat, ctx.wanted = inputs[4:], list(ctx.needs_input_grad[:3])
    ctx.save_for_backward(*inputs[:4], *output)


def _backward_statistics(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
    out = _statistics_backward_op(*ctx.saved_tensors, *upstream, *ctx.flat, ctx.wanted)
    return *(g if want else None for g, want in zip(out, ctx.wanted, strict=True)), *([None] * 7)


def _run_statistics_backward(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    saved, upstream, flat, wanted = Statistics(*rest[:4]), Statistics(*rest[4:8]), rest[8:-1], rest[-1]
    gradients = _measure_backward(hidden, weight, bias, targets, saved, upstream, _unflat(flat), tuple(wanted))
    return tuple(_filled(_typed(gradients, hidden, weight, bias), hidden.device))


def _fake_statistics_backward(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    dtypes = tuple(None if x is None else x.dtype for x in (hidden, weight, bias))
    return tuple(_fake_gradients((hidden, weight, bias), rest[-1], dtypes))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


_loss_op = register(
    f"linear_loss({TENSORS}, Tensor scale, {OPTIONS}, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_loss,
    _fake_loss,
    _backward_loss,
    _setup_loss,
)
_statistics_backward_op = register(
    f"linear_statistics_backward({TENSORS}, Tensor lse, Tensor picked, Tensor mean, Tensor entropy, Tensor to_lse, "
    f"Tensor to_picked, Tensor to_mean, Tensor to_entropy, {_MEASURED}, bool[] wanted) -> (Tensor, Tensor, Tensor)",
    _run_statistics_backward,
    _fake_statistics_backward,
)
_statistics_op = register(
    f"linear_statistics({TENSORS}, {_MEASURED}) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_statistics,
    _fake_statistics,
    _backward_statistics,
    _setup_statistics,
)
