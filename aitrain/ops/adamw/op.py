"""Multi-tensor AdamW and gradient norm: which implementation runs, and the ops that compiled code sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aitrain.errors import ShapeError
from aitrain.ops.adamw import native, reference
from aitrain.ops.adamw.bucket import NORM, STEP, Bucket, Numbers
from aitrain.ops.adamw.table import TableCache
from aitrain.ops.backend import use_kernels
from aitrain.ops.registration import register


def squared_norms(bucket: Bucket, cache: TableCache | None = None) -> torch.Tensor:
    """Return fp32 sums of squares of a bucket's gradients, whose sum is the squared 2-norm.

    Args:
        bucket: Its gradients are read once.
        cache: Keeps the addresses from step to step.
    """
    if not use_kernels(bucket.params[0]):
        return reference.squared_norms(bucket.grads)
    table = (cache or TableCache()).get(bucket)
    if native.use_native(bucket.params[0]):
        return native.squared_norms(bucket, table)
    from aitrain.ops.adamw import kernel

    return kernel.squared_norms(bucket, table)


def prepare(step: torch.Tensor, numbers: Numbers, squares: torch.Tensor | None = None) -> torch.Tensor:
    """Count a step and compute on the device what all elements share: clip factor, bias corrections.

    Args:
        step: 0-dimensional fp32, steps done; increased by one.
        numbers: Hyperparameters.
        squares: Sums of squares of all gradients (of all ranks); None = not measured. Needed to clip.

    Returns:
        fp32 of shape `(8,)`: the coefficients of `bucket.py`.

    Raises:
        ShapeError: `max_norm` is given and `squares` is not.
    """
    if numbers.max_norm is not None and squares is None:
        raise ShapeError(f"adamw: max_norm={numbers.max_norm} needs the sums of squares: call squared_norms first")
    if not use_kernels(step):
        return reference.prepare(step, numbers, squares)
    from aitrain.ops.adamw import kernel

    return kernel.prepare(step, numbers, squares)


def norm_of(coefficients: torch.Tensor) -> torch.Tensor:
    """Return the gradients' 2-norm before clipping, 0-dimensional.

    Args:
        coefficients: From `prepare`.
    """
    return coefficients[NORM]


def adamw_step(bucket: Bucket, coefficients: torch.Tensor, numbers: Numbers, cache: TableCache | None = None) -> None:
    """Take one AdamW step on every tensor of a bucket, in place, in one launch.

    Args:
        bucket: The tensors; gradients are only read.
        coefficients: From `prepare`, on the same device.
        numbers: Hyperparameters.
        cache: Keeps the addresses from step to step.

    Source: Loshchilov and Hutter, arXiv:1711.05101, algorithm 2.
    """
    if use_kernels(bucket.params[0]):
        table = (cache or TableCache()).get(bucket)
        if native.use_native(bucket.params[0]):
            native.step(bucket, table, coefficients, numbers)
            return
        from aitrain.ops.adamw import kernel

        kernel.step(bucket, table, coefficients, numbers)
    elif bucket.params[0].device.type == "cpu" and _all_fp32(bucket):
        _step_of_torch(bucket, coefficients, numbers)
    else:
        reference.step(bucket, coefficients, numbers)


def grad_norm(grads: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the 2-norm over all gradients.

    Args:
        grads: fp32 or bf16, contiguous, on one device, of one type.

    Returns:
        fp32, 0-dimensional, on the device; the same number in every run.

    >>> grad_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5.)
    """
    if torch.compiler.is_compiling():
        norm: torch.Tensor = _GRAD_NORM(list(grads))
        return norm
    return _grad_norm(grads)


def _grad_norm(grads: Sequence[torch.Tensor]) -> torch.Tensor:
    if not grads:
        return torch.zeros(())
    # every column of the table needs an address; the norm reads the gradients alone
    bucket = Bucket(grads, grads, grads, grads, offsets=[0] * len(grads))
    bucket.check()
    return squared_norms(bucket).sum().sqrt()


def _all_fp32(bucket: Bucket) -> bool:
    return all(t.dtype == torch.float32 for ts in (bucket.params, bucket.grads, bucket.exp_avgs) for t in ts[:1])


def _step_of_torch(bucket: Bucket, coefficients: torch.Tensor, numbers: Numbers) -> None:
    """Run torch's own fused CPU kernel, which is vectorised and makes no temporaries."""
    grads = list(bucket.grads)
    if numbers.max_norm is not None:
        grads = list(torch._foreach_mul(grads, coefficients[reference.CLIP]))
    steps = [coefficients[STEP]] * len(grads)
    torch._fused_adamw_(
        list(bucket.params),
        grads,
        list(bucket.exp_avgs),
        list(bucket.exp_avg_sqs),
        [],
        steps,
        lr=numbers.lr,
        beta1=numbers.beta1,
        beta2=numbers.beta2,
        weight_decay=numbers.weight_decay,
        eps=numbers.eps,
        amsgrad=False,
        maximize=False,
    )


def _run_step(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    exp_avgs: list[torch.Tensor],
    exp_avg_sqs: list[torch.Tensor],
    exp_avg_scales: list[torch.Tensor],
    exp_avg_sq_scales: list[torch.Tensor],
    offsets: list[int],
    coefficients: torch.Tensor,
    numbers: list[float],
    stochastic: bool,
    seed: int,
) -> None:
    bucket = Bucket(params, grads, exp_avgs, exp_avg_sqs, exp_avg_scales, exp_avg_sq_scales, offsets)
    bucket.check()
    lr, beta1, beta2, eps, weight_decay, max_norm = numbers
    of_step = Numbers(lr, beta1, beta2, eps, weight_decay, max_norm if max_norm > 0 else None, stochastic, seed)
    adamw_step(bucket, coefficients, of_step)


_GRAD_NORM = register(
    "adamw_grad_norm(Tensor[] grads) -> Tensor",
    lambda grads: _grad_norm(grads),
    lambda grads: grads[0].new_empty((), dtype=torch.float32),
)

ADAMW_STEP = register(
    "adamw_step(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] exp_avg_scales, Tensor(e!)[] exp_avg_sq_scales, int[] offsets, Tensor coefficients, "
    "float[] numbers, bool stochastic, int seed) -> ()",
    _run_step,
    lambda *args: None,
)
"""`torch.ops.aitrain.adamw_step`: one step as compiled code may call it. `numbers` are lr, beta1, beta2, eps, weight
decay and the norm to clip at (0 = none)."""
