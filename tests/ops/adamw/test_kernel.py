"""The Triton kernels, in the interpreter where there is no GPU, against the reference."""

from __future__ import annotations

import pytest
import torch

from aitrain.ops.adamw import kernel, reference, table
from aitrain.ops.adamw.bucket import Bucket, Numbers
from aitrain.ops.adamw.table import build_table
from ops.adamw.buckets import KINDS, SHAPES, make_bucket, twin, written

CHUNK = 1024
NUMBERS = Numbers(1e-2, 0.9, 0.999, 1e-8, 0.1, max_norm=1.0, seed=0x1234567890)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter pays for every tile of a chunk, empty or not."""
    for module in (kernel, table):
        monkeypatch.setattr(module, "CHUNK", CHUNK)


def assert_same(ours: Bucket, exact: Bucket) -> None:
    """Fail where the kernel and the reference differ by more than the order of a few fp32 operations explains."""
    for mine, other in zip(written(ours), written(exact), strict=True):
        assert mine.dtype == other.dtype
        if mine.dtype == torch.float32:
            # m adds two numbers that may cancel: 4 units of the larger one, which is below 1 here
            torch.testing.assert_close(mine, other, rtol=4 * 2**-23, atol=4 * 2**-25)
        else:  # a last bit of fp32 seldom decides a draw or a code
            assert (mine != other).sum() <= mine.numel() // 200


def both(ours: Bucket, numbers: Numbers, steps: int = 1) -> Bucket:
    """Run the kernel on `ours` and the reference on a copy, which is returned."""
    exact, counts = twin(ours), [torch.zeros(()), torch.zeros(())]
    for _ in range(steps):
        addresses = build_table(ours)
        squares = kernel.squared_norms(ours, addresses)
        coefficients = kernel.prepare(counts[0], numbers, squares)
        kernel.step(ours, addresses, coefficients, numbers)
        wanted = reference.prepare(counts[1], numbers, reference.squared_norms(exact.grads))
        torch.testing.assert_close(coefficients, wanted, rtol=2e-6, atol=0)
        reference.step(exact, wanted, numbers)
    assert counts[0] == counts[1] == steps
    return exact


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference(kind: str) -> None:
    ours = make_bucket(kind)
    assert_same(ours, both(ours, NUMBERS, steps=2))


def test_no_granule_is_forgotten() -> None:
    ours = make_bucket("fp32", [(40,), (3,)])
    assert_same(ours, both(ours, Numbers(1e-1, 0.9, 0.95, 1e-8, 0.5, max_norm=0.5)))


@pytest.mark.parametrize("offset", [0, 3])
def test_random_bits_are_the_references(offset: int) -> None:
    """Element by element: a difference in one draw shows in one weight."""
    ours = make_bucket("bf16, bf16 moments", [(264,)])
    ours.offsets = [offset + (1 << 36)]
    exact = both(ours, NUMBERS)
    for mine, other in zip(written(ours), written(exact), strict=True):
        assert (mine != other).sum() <= 1


def test_kernel_codes_are_the_references() -> None:
    ours = make_bucket("fp32, 8-bit moments", [(256,)])
    ours.grads = [torch.logspace(-9, 0, 256).to(torch.bfloat16)]  # every decade of the code
    for codes, zero in ((ours.exp_avgs, 127), (ours.exp_avg_sqs, 0)):
        codes[0].fill_(zero)
    exact = both(ours, NUMBERS)
    for mine, other in zip(written(ours)[1:3], written(exact)[1:3], strict=True):
        assert len(mine.unique()) > 50
        assert (mine != other).sum() <= 1


def test_coefficients_of_the_third_step() -> None:
    ours, theirs = torch.tensor(2.0), torch.tensor(2.0)
    squares = torch.tensor([4.0, 5.0])
    wanted = reference.prepare(theirs, NUMBERS, squares)
    torch.testing.assert_close(kernel.prepare(ours, NUMBERS, squares), wanted, rtol=2e-6, atol=0)
    assert ours == theirs == 3


def test_to_nearest() -> None:
    ours = make_bucket("bf16, bf16 moments", [(40,), (3,)])
    assert_same(ours, both(ours, Numbers(1e-2, 0.9, 0.95, 1e-8, 0.0, stochastic=False)))


def test_no_moments() -> None:
    ours = make_bucket("fp32", [(40,)])
    assert_same(ours, both(ours, Numbers(1e-2, 0.0, 0.0, 1e-8, 0.0)))


@pytest.mark.parametrize("kind", ["fp32", "bf16, bf16 moments", "bf16, 8-bit moments"])
def test_unaligned_tensors_are_right(kind: str) -> None:
    ours = make_bucket(kind, [(301,), (40,)])
    ours.params = [torch.cat([x[:1], x])[1:] for x in ours.params]  # one element behind an aligned address
    ours.offsets = [0, 301]
    assert build_table(ours).wide is None
    assert_same(ours, both(ours, NUMBERS))


def test_more_than_one_chunk() -> None:
    ours = make_bucket("bf16, fp32 moments", [(CHUNK + 256,)])
    assert_same(ours, both(ours, NUMBERS))


def test_neighbours_in_one_buffer_stay_untouched() -> None:
    """DeepSpeed's and DDP's buffers hold one tensor right behind the other."""
    buffer = torch.full((64,), 5.0)
    ours = Bucket([buffer[8:19]], *([torch.ones(11)] for _ in range(3)), offsets=[0])
    both(ours, NUMBERS)
    assert (buffer[:8] == 5).all()
    assert (buffer[19:] == 5).all()


def test_norm_is_exact_and_the_same_in_every_run() -> None:
    bucket = make_bucket("bf16, fp32 moments", [*SHAPES, (2 * CHUNK,)])
    addresses = build_table(bucket)
    first, second = (kernel.squared_norms(bucket, addresses) for _ in range(2))
    assert torch.equal(first, second)
    exact = sum(grad.double().square().sum() for grad in bucket.grads)
    assert abs(first.double().sum() - exact) <= 1e-6 * exact


def test_programs_of_the_norm_share_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "PARTIALS", 2)
    bucket = make_bucket("fp32", [(40,)] * 5)
    sums = kernel.squared_norms(bucket, build_table(bucket))
    assert len(sums) == 2
    torch.testing.assert_close(sums.sum(), sum(grad.square().sum() for grad in bucket.grads))


def test_nothing_to_do() -> None:
    bucket = make_bucket("fp32", [(0,)])
    addresses = build_table(bucket)
    assert addresses.parts() == []
    assert kernel.squared_norms(bucket, addresses).sum() == 0
    kernel.step(bucket, addresses, kernel.prepare(torch.zeros(()), NUMBERS, None), NUMBERS)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_is_not_hidden(bad: float) -> None:
    bucket = make_bucket("bf16, 8-bit moments", [(40,)])
    bucket.grads[0][3] = bad
    addresses = build_table(bucket)
    coefficients = kernel.prepare(torch.zeros(()), NUMBERS, kernel.squared_norms(bucket, addresses))
    kernel.step(bucket, addresses, coefficients, NUMBERS)
    assert bucket.params[0].isnan().any()
