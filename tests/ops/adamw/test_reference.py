"""AdamW in plain PyTorch against torch's own, random bits against published ones, rounding over every case."""

from __future__ import annotations

import pytest
import torch

from aitrain.ops.adamw.bucket import CLIP, NORM, Bucket, Numbers
from aitrain.ops.adamw.reference import philox, prepare, random_bits, round_stochastic, squared_norms, step
from ops.adamw.buckets import make_bucket, twin, written

NUMBERS = Numbers(lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1, seed=7)


def test_twenty_steps_equal_torch_in_fp64() -> None:
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    ours = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(5, 3), (7,), ()]]
    torchs = [torch.nn.Parameter(x.clone()) for x in ours]
    optimizer = torch.optim.AdamW(torchs, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, foreach=False)
    moments = [[torch.zeros_like(x) for x in ours] for _ in range(2)]
    count = torch.zeros((), dtype=torch.float64)
    for _ in range(20):
        grads = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in ours]
        for param, grad in zip(torchs, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        bucket = Bucket(ours, grads, *moments, offsets=[0, 16, 24])
        step(bucket, prepare(count, NUMBERS, None), NUMBERS)
    assert count == 20
    for mine, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(mine, other.detach(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_norm_and_clip_equal_torch(max_norm: float) -> None:
    bucket = make_bucket("fp32")
    params = [torch.nn.Parameter(x.clone()) for x in bucket.params]
    for param, grad in zip(params, bucket.grads, strict=True):
        param.grad = grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(params, max_norm)
    numbers = Numbers(1e-2, 0.9, 0.999, 1e-8, 0.1, max_norm)
    coefficients = prepare(torch.zeros(()), numbers, squared_norms(bucket.grads))
    torch.testing.assert_close(coefficients[NORM], norm)
    for param, grad in zip(params, bucket.grads, strict=True):
        torch.testing.assert_close(grad * coefficients[CLIP], param.grad)


def test_philox_known_answers() -> None:
    """Source: kat_vectors of Random123 (github.com/DEShawResearch/random123), philox4x32 with 7 rounds."""
    for counter, key, answer in (
        ([0] * 4, 0, [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
        ([2**32 - 1] * 4, 2**64 - 1, [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            [0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A],
        ),
    ):
        assert [int(word) for word in philox([torch.tensor(c) for c in counter], key)] == answer


def test_random_bits_are_uniform_and_belong_to_the_element() -> None:
    elements = torch.arange(80_000)
    bits = random_bits(elements, torch.tensor(3), 0, seed=5)
    assert bits.min() >= 0
    assert bits.max() < 2**16
    # 80,000 draws: the mean of a uniform variable is known to 65536 / sqrt(12 * 80000) = 67, a bit to 0.5 / sqrt(80000)
    assert abs(bits.double().mean() - 32767.5) < 4 * 67
    for bit in range(16):
        assert abs(((bits >> bit) & 1).double().mean() - 0.5) < 5 * 0.0018
    some = torch.tensor([79_999, 0, 12_345])
    assert torch.equal(random_bits(some, torch.tensor(3), 0, seed=5), bits[some])
    others = [
        random_bits(elements, torch.tensor(s), stream, seed=k) for s, stream, k in ((4, 0, 5), (3, 1, 5), (3, 0, 6))
    ]
    for other in others:
        assert (other == bits).double().mean() < 1e-3, "another step, stream or seed must draw other bits"


def test_far_elements_draw_other_bits() -> None:
    near = torch.arange(64)
    step = torch.tensor(1)
    assert (random_bits(near, step, 0, 0) != random_bits(near + (1 << 35), step, 0, 0)).double().mean() > 0.9


@pytest.mark.parametrize("x", [1.0 + 2**-9, -3.3, 1e-30, 5e-41, 1 + 2**-23])
def test_rounding_is_right_on_average_over_all_65536_draws(x: float) -> None:
    value = torch.full((2**16,), x)
    rounded = round_stochastic(value, torch.arange(2**16)).double()
    # mantissas step evenly between two neighbours, so the mean is exact
    assert abs(rounded.mean().item() - value[0].double().item()) <= 1e-12 * abs(x)
    assert len(rounded.unique()) == 2


@pytest.mark.parametrize("draw", [0, 1, 0x8000, 0xFFFF])
def test_every_bf16_number_rounds_to_itself(draw: int) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    rounded = round_stochastic(every.float(), torch.full((2**16,), draw))
    number = ~every.isnan()
    assert torch.equal(rounded[number].view(torch.int16), every[number].view(torch.int16))
    assert rounded[~number].isnan().all()


def test_the_gpus_nan_stays_nan() -> None:
    nan = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    assert round_stochastic(nan, torch.tensor([0xFFFF, 0xFFFF])).isnan().all()


def test_same_seed_same_bits_other_step_other_bits() -> None:
    first, second, third = (make_bucket("bf16, bf16 moments") for _ in range(3))
    for bucket, done in ((first, 0.0), (second, 0.0), (third, 1.0)):
        coefficients = prepare(torch.tensor(done), NUMBERS, None)
        step(bucket, coefficients, NUMBERS)
    assert all(map(torch.equal, written(first), written(second)))
    assert not all(map(torch.equal, written(first), written(third)))


def test_mean_of_many_draws_is_the_exact_step() -> None:
    start = make_bucket("bf16, fp32 moments", [(64,)])
    exact = twin(start)
    exact.params = [exact.params[0].float()]
    coefficients = prepare(torch.zeros(()), NUMBERS, None)
    step(exact, coefficients, NUMBERS)
    draws = 500
    total = torch.zeros(64, dtype=torch.float64)
    for seed in range(draws):
        bucket = twin(start)
        step(bucket, coefficients, Numbers(1e-2, 0.9, 0.999, 1e-8, 0.1, seed=seed))
        total += bucket.params[0].double()
    unit = torch.maximum(exact.params[0].abs().double(), torch.tensor(1e-3)) * 2**-7
    # a draw errs by at most half a unit in root mean square: 5 standard errors of the mean
    assert ((total / draws - exact.params[0].double()).abs() <= 5 * 0.5 * unit / draws**0.5).all()


def test_gradients_are_only_read() -> None:
    bucket = make_bucket("bf16, 8-bit moments")
    before = [grad.clone() for grad in bucket.grads]
    numbers = Numbers(1e-2, 0.9, 0.999, 1e-8, 0.1, 0.1)
    step(bucket, prepare(torch.zeros(()), numbers, squared_norms(bucket.grads)), numbers)
    assert all(map(torch.equal, before, bucket.grads))
