"""Order of the samples: a pure function of the seed and the global sample number, without state and without a list."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_ROUNDS = 8
"""Luby and Rackoff need 4 for a permutation that looks random; 8 leave room for the narrow halves of small sets."""

_MIN_HALF_BITS = 3
"""Halves of at least 3 bits: narrower ones leave the round function almost nothing to mix."""

_MASK = 0xFFFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_A = 0xBF58476D1CE4E5B9
_MIX_B = 0x94D049BB133111EB

Integers = npt.NDArray[np.int64]


def sample_index(seed: int, n: int, size: int, shuffle: bool) -> int:
    """Return the index of the n-th sample of the run.

    Epoch `n // size` is a permutation of all samples drawn from (seed, epoch): a Feistel network on the smallest
    power of 4 that holds `size`, walked until it lands inside. No memory per sample, so any rank can ask for any n.

    Args:
        seed: Any integer.
        n: Global sample number since the start of the run, 0 or more.
        size: Samples in the data, at least 1.
        shuffle: Off gives file order in every epoch.

    Returns:
        Index into the data, 0 to `size - 1`.

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002 (cycle walking); the mixing
    function is the finaliser of SplitMix64 (Steele et al., OOPSLA 2014).

    >>> sorted(sample_index(seed=1, n=n, size=5, shuffle=True) for n in range(5))
    [0, 1, 2, 3, 4]
    """
    epoch, position = divmod(n, size)
    if not shuffle or size == 1:
        return position
    half = _half_bits(size)
    low = (1 << half) - 1
    key = _mix(_mix(seed & _MASK) ^ _mix((epoch + _GOLDEN) & _MASK))
    while True:
        left, right = position >> half, position & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix((key + turn * _GOLDEN & _MASK) ^ right) & low)
        position = left << half | right
        if position < size:
            return position


def sample_indices(seed: int, n: Integers, size: int, shuffle: bool) -> Integers:
    """Vectorised `sample_index`.

    Args:
        seed: Any integer.
        n: Global sample numbers, any shape, 0 or more.
        size: Samples in the data, at least 1.
        shuffle: Off gives file order in every epoch.

    Returns:
        Indices into the data, shape of `n`.
    """
    n = np.asarray(n, dtype=np.int64)
    epoch, position = np.divmod(n, size)
    if not shuffle or size == 1:
        return position
    half = np.uint64(_half_bits(size))
    low = np.uint64((1 << _half_bits(size)) - 1)
    # Products and sums modulo 2**64 are what is wanted; numpy only warns of them for scalars, so arrays throughout.
    key = _mix_array(
        np.uint64(_mix(seed & _MASK)) ^ _mix_array(epoch.astype(np.uint64) + np.full(n.shape, _GOLDEN, np.uint64))
    )
    position = position.astype(np.uint64)
    walking = np.ones(n.shape, dtype=bool)
    while walking.any():
        left, right = position[walking] >> half, position[walking] & low
        keys = key[walking]
        for turn in range(_ROUNDS):
            turn_key = keys + np.full(keys.shape, turn * _GOLDEN & _MASK, np.uint64)
            left, right = right, left ^ (_mix_array(turn_key ^ right) & low)
        position[walking] = left << half | right
        walking &= position >= np.uint64(size)
    return position.astype(np.int64)


def _half_bits(size: int) -> int:
    return max(_MIN_HALF_BITS, ((size - 1).bit_length() + 1) // 2)


def _mix(value: int) -> int:
    value = (value ^ value >> 30) * _MIX_A & _MASK
    value = (value ^ value >> 27) * _MIX_B & _MASK
    return value ^ value >> 31


def _mix_array(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = (value ^ value >> np.uint64(30)) * np.uint64(_MIX_A)
    value = (value ^ value >> np.uint64(27)) * np.uint64(_MIX_B)
    return value ^ value >> np.uint64(31)
