"""Which implementation runs, torch's own AdamW on the CPU, and what the compiler sees."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aitrain.errors import ShapeError
from aitrain.ops.adamw import kernel, reference, table
from aitrain.ops.adamw.bucket import Bucket, Numbers
from aitrain.ops.adamw.op import ADAMW_STEP, adamw_step, grad_norm, norm_of, prepare, squared_norms
from ops.adamw.buckets import KINDS, make_bucket, twin, written

NUMBERS = Numbers(1e-2, 0.9, 0.999, 1e-8, 0.1, seed=3)


def arguments(bucket: Bucket, coefficients: torch.Tensor) -> tuple[object, ...]:
    columns = (bucket.params, bucket.grads, bucket.exp_avgs, bucket.exp_avg_sqs)
    scales = (bucket.exp_avg_scales, bucket.exp_avg_sq_scales)
    lists = [list(tensors) for tensors in (*columns, *scales)]
    return (*lists, list(bucket.offsets), coefficients, [1e-2, 0.9, 0.999, 1e-8, 0.1, 0.0], True, 3)


@pytest.mark.usefixtures("on_the_cpu")
def test_twenty_steps_on_the_cpu_equal_torchs_fused_adamw_bit_for_bit() -> None:
    bucket = make_bucket("fp32")
    for moments in (bucket.exp_avgs, bucket.exp_avg_sqs):
        for moment in moments:
            moment.zero_()
    params = [torch.nn.Parameter(x.clone()) for x in bucket.params]
    optimizer = torch.optim.AdamW(params, lr=1e-2, betas=(0.9, 0.999), weight_decay=0.1, fused=True)
    count, generator = torch.zeros(()), torch.Generator(torch.get_default_device()).manual_seed(1)
    for _ in range(20):
        for param, grad in zip(params, bucket.grads, strict=True):
            grad.copy_(torch.randn(grad.shape, generator=generator))
            param.grad = grad.clone()
        optimizer.step()
        adamw_step(bucket, prepare(count, NUMBERS), NUMBERS)
    assert all(map(torch.equal, bucket.params, params))


@pytest.mark.parametrize("way", ["reference", "triton"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_agree(kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITRAIN_OPS", way)
    for module in (kernel, table):
        monkeypatch.setattr(module, "CHUNK", 1024)
    numbers = Numbers(1e-2, 0.9, 0.999, 1e-8, 0.1, max_norm=0.5, seed=3)
    ours = make_bucket(kind, [(3, 56), (5,)])
    exact = twin(ours)
    coefficients = prepare(torch.tensor(4.0), numbers, squared_norms(ours))
    torch.testing.assert_close(norm_of(coefficients), grad_norm(exact.grads))
    adamw_step(ours, coefficients, numbers)
    reference.step(exact, coefficients, numbers)
    for mine, other in zip(written(ours), written(exact), strict=True):
        torch.testing.assert_close(mine.float(), other.float(), rtol=4 * 2**-23, atol=4 * 2**-25)


@pytest.mark.parametrize("way", ["reference", "triton"])
def test_norm_equals_torch(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITRAIN_OPS", way)
    grads = list(make_bucket("bf16, fp32 moments").grads)
    exact = torch.nn.utils.get_total_norm([grad.double() for grad in grads])
    torch.testing.assert_close(grad_norm(grads).double(), exact, rtol=1e-6, atol=0)
    assert grad_norm([]) == 0


def test_clipping_needs_the_norm() -> None:
    with pytest.raises(ShapeError, match="call squared_norms first"):
        prepare(torch.zeros(()), Numbers(1e-2, 0.9, 0.999, 1e-8, 0.1, max_norm=1.0))


@pytest.mark.parametrize("kind", ["fp32", "bf16, 8-bit moments"])
def test_registered_step(kind: str) -> None:
    bucket = make_bucket(kind, [(3, 7), (5,)])
    coefficients = reference.prepare(torch.zeros(()), NUMBERS, None)
    torch.library.opcheck(ADAMW_STEP, arguments(bucket, coefficients))


def test_registered_norm() -> None:
    torch.library.opcheck(torch.ops.aitrain.adamw_grad_norm.default, ([torch.randn(3, 7), torch.randn(5)],))
    with FakeTensorMode():
        norm = torch.ops.aitrain.adamw_grad_norm([torch.empty(3, dtype=torch.bfloat16)])
    assert (norm.shape, norm.dtype) == ((), torch.float32)


@pytest.mark.parametrize("kind", ["fp32", "bf16, 8-bit moments"])
def test_compiled_step_equals_eager(kind: str) -> None:
    ours = make_bucket(kind, [(3, 7), (5,)])
    exact = twin(ours)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(tensors: tuple[object, ...]) -> torch.Tensor:
        torch.ops.aitrain.adamw_step(*tensors)
        return grad_norm(tensors[1])  # type: ignore[arg-type]

    coefficients = reference.prepare(torch.zeros(()), NUMBERS, None)
    norm = compiled(arguments(ours, coefficients))
    ADAMW_STEP(*arguments(exact, coefficients))
    torch.testing.assert_close(norm, grad_norm(exact.grads))
    assert all(map(torch.equal, written(ours), written(exact)))


def test_registered_step_refuses_what_does_not_fit() -> None:
    bucket = make_bucket("fp32", [(3, 7)])
    bucket.grads = [torch.zeros(7, 3)]
    with pytest.raises(ShapeError, match="for a parameter"):
        ADAMW_STEP(*arguments(bucket, torch.zeros(8)))
