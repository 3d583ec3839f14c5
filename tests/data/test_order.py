"""The order is a permutation per epoch, the same for one number and for many."""

import numpy as np
import pytest

from aitrain.data.order import sample_index, sample_indices

SIZES = [1, 2, 3, 7, 64, 65, 1000, 4097]  # one, both sides of a power of 4, odd, and a domain walked often


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_epoch_is_a_permutation(size: int, epoch: int) -> None:
    numbers = np.arange(epoch * size, (epoch + 1) * size)
    assert sorted(sample_indices(11, numbers, size, True).tolist()) == list(range(size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", [0, -3, 2**70])
def test_many_equal_one_by_one(size: int, seed: int) -> None:
    numbers = np.array([0, size - 1, size, 3 * size + size // 2, 10**12, 10**12 + 1])
    assert sample_indices(seed, numbers, size, True).tolist() == [
        sample_index(seed, int(n), size, True) for n in numbers
    ]


def test_differs_by_epoch_and_by_seed() -> None:
    orders = [
        tuple(sample_indices(seed, np.arange(epoch * 64, epoch * 64 + 64), 64, True).tolist())
        for seed in range(10)
        for epoch in range(10)
    ]
    assert len(set(orders)) == 100


def test_file_order_without_shuffle() -> None:
    assert sample_indices(5, np.arange(7), 3, False).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert [sample_index(5, n, 3, False) for n in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_all_orders_of_three_are_drawn_about_equally() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for order in sample_indices(0, np.arange(9000), 3, True).reshape(3000, 3).tolist():
        counts[tuple(order)] = counts.get(tuple(order), 0) + 1
    # Six orders, 500 expected of each with a standard deviation of 20.4: five of those is 102.
    assert len(counts) == 6
    assert all(abs(count - 500) < 102 for count in counts.values()), counts


def test_neighbours_are_not_kept_together() -> None:
    order = sample_indices(3, np.arange(1000), 1000, True)
    # A random permutation of 1000 keeps on average 2 pairs |difference| = 1 next to each other.
    assert (np.abs(np.diff(order)) == 1).sum() < 15
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15


def test_the_order_never_changes_between_versions() -> None:
    """A resumed run relies on these numbers: changing them breaks every run under way."""
    assert sample_indices(0, np.arange(8), 8, True).tolist() == [sample_index(0, n, 8, True) for n in range(8)]
    assert [sample_index(42, n, 10, True) for n in range(10)] == PINNED


PINNED = [8, 5, 0, 6, 9, 1, 3, 2, 7, 4]
