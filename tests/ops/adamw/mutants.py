"""Bugs to plant in AdamW, and the tests that have to notice."""

from __future__ import annotations

from ops.mutant import Mutant

ROOM = "aitrain/ops/adamw"
TESTS = "tests/ops/adamw"

MUTANTS = [
    Mutant(
        "the kernel forgets the weight decay",
        f"{ROOM}/kernel.py",
        "param = param * decay - step_size * update",
        "param = param - step_size * update",
        f"{TESTS}/test_kernel.py::test_no_granule_is_forgotten",
    ),
    Mutant(
        "the kernel clips the first moment only",
        f"{ROOM}/kernel.py",
        "second = beta2 * second + rest2 * grad * grad",
        "second = beta2 * second + rest2 * grad * grad / (clip * clip)",
        f"{TESTS}/test_kernel.py::test_no_granule_is_forgotten",
    ),
    Mutant(
        "narrow tensors are written one element too far",
        f"{ROOM}/kernel.py",
        """        mask = (granule < size)[:, :, None] if WIDE else element < size

        grad = tl""",
        """        mask = (granule < size)[:, :, None] if WIDE else element < size + 1

        grad = tl""",
        f"{TESTS}/test_kernel.py::test_neighbours_in_one_buffer_stay_untouched",
    ),
    Mutant(
        "the norm leaves out the last element of every granule",
        f"{ROOM}/kernel.py",
        "total += grad * grad",
        "total += tl.where(item == 7, 0.0, grad * grad)",
        f"{TESTS}/test_kernel.py::test_programs_of_the_norm_share_the_chunks",
    ),
    Mutant(
        "neighbours share their random bits",
        f"{ROOM}/kernel.py",
        "word = tl.where(lane < 2, a, tl.where(lane < 4, b, tl.where(lane < 6, c, d)))",
        "word = tl.where(lane < 4, a, tl.where(lane < 4, b, tl.where(lane < 6, c, d)))",
        f"{TESTS}/test_kernel.py::test_random_bits_are_the_references",
    ),
    Mutant(
        "both moments draw the same bits",
        f"{ROOM}/kernel.py",
        "second_noise = _bits(seed, counter, lane, step, 2)",
        "second_noise = _bits(seed, counter, lane, step, 1)",
        f"{TESTS}/test_kernel.py::test_random_bits_are_the_references",
    ),
    Mutant(
        "the second decade begins too late",
        f"{ROOM}/kernel.py",
        "above = magnitude >= CODE[i]",
        "above = magnitude >= CODE[i] * 1.2",
        f"{TESTS}/test_kernel.py::test_kernel_codes_are_the_references",
    ),
    Mutant(
        "bias correction of the step before",
        f"{ROOM}/kernel.py",
        "t = tl.load(step).to(tl.float64) + 1\n    tl.store(step, t.to(tl.float32))",
        "t = tl.load(step).to(tl.float64) + 1\n    tl.store(step, t.to(tl.float32))\n    t = tl.where(t > 1, t - 1, t)",
        f"{TESTS}/test_kernel.py::test_coefficients_of_the_third_step",
    ),
    Mutant(
        "a large NaN rounds to zero",
        f"{ROOM}/reference.py",
        "up = torch.where(torch.isnan(x), torch.full_like(up, 0x7FC0), up)",
        "up = torch.where(torch.isinf(x), torch.full_like(up, 0x7F80), up)",
        f"{TESTS}/test_reference.py::test_the_gpus_nan_stays_nan",
    ),
    Mutant(
        "rounding goes up too rarely",
        f"{ROOM}/reference.py",
        "up = ((raw + bits) & 0xFFFF0000) >> 16",
        "up = ((raw + (bits & 0xFF00)) & 0xFFFF0000) >> 16",
        f"{TESTS}/test_reference.py::test_rounding_is_right_on_average_over_all_65536_draws",
    ),
    Mutant(
        "a small second moment becomes zero",
        f"{ROOM}/codes.py",
        "dead = magnitude < code.smallest if code.signed else magnitude == 0",
        "dead = magnitude < code.values[code.zero + 1] / 2",
        f"{TESTS}/test_codes.py::test_every_bf16_number_goes_to_the_nearest_value",
    ),
    Mutant(
        "codes are cut off instead of rounded at the border of a decade",
        f"{ROOM}/codes.py",
        "_fp32((magnitudes[count - first - 1] + magnitudes[count - first]) / 2)",
        "_fp32(magnitudes[count - first - 1] * 1.0001)",
        f"{TESTS}/test_codes.py::test_every_bf16_number_goes_to_the_nearest_value",
    ),
    Mutant(
        "an unaligned tensor is read 16 bytes at a time",
        f"{ROOM}/table.py",
        "if not aligned or row[OFFSET] % GRANULE:",
        "if row[OFFSET] % GRANULE:",
        f"{TESTS}/test_table.py::test_unaligned_is_narrow",
    ),
    Mutant(
        "a table outlives its gradients",
        f"{ROOM}/table.py",
        "elif grads != self._grads:",
        "elif len(grads) != len(self._grads):",
        f"{TESTS}/test_table.py::test_cache_follows_the_addresses",
    ),
    Mutant(
        "the scales of an end are those of the beginning",
        f"{ROOM}/table.py",
        "steps = [cut, cut, cut, cut, cut // BLOCK, cut // BLOCK]",
        "steps = [cut, cut, cut, cut, 0, 0]",
        f"{TESTS}/test_table.py::test_an_end_takes_its_block_along",
    ),
    Mutant(
        "shards draw the bits of the first shard",
        "aitrain/optim/fused_adamw.py",
        "offset + _first_element(param))",
        "offset)",
        "tests/optim/test_fused_adamw.py::test_two_shards_equal_one_device",
    ),
]
