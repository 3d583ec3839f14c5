"""Addresses on the device: every element once, wide where it may be, and kept until something moves."""

from __future__ import annotations

import pytest
import torch

from aitrain.ops.adamw.bucket import Bucket
from aitrain.ops.adamw.table import CHUNK, GRAD, OFFSET, PARAM, SIZE, Part, Table, TableCache, build_table
from ops.adamw.buckets import KINDS, make_bucket


def covered(part: Part | None) -> dict[int, int]:
    """Return address of a parameter's element -> number of its random bits, for every element that a launch visits."""
    found: dict[int, int] = {}
    if part is None:
        return found
    for entry in part.chunks.tolist():
        row = part.rows[entry >> 32].tolist()
        begin = (entry & 0xFFFFFFFF) * CHUNK
        for i in range(begin, min(begin + CHUNK, row[SIZE])):
            address = row[PARAM] + 4 * i
            assert address not in found, "an element is visited twice"
            found[address] = row[OFFSET] + i
    return found


def wanted(bucket: Bucket) -> dict[int, int]:
    return {
        param.data_ptr() + 4 * i: offset + i
        for param, offset in zip(bucket.params, bucket.offsets, strict=True)
        for i in range(param.numel())
    }


def test_every_element_is_visited_once() -> None:
    bucket = make_bucket("fp32", [(3, 1000), (17,), (2 * CHUNK + 24,), (CHUNK + 1,), (0,)])
    table = build_table(bucket)
    assert covered(table.wide) | covered(table.narrow) == wanted(bucket)
    assert not covered(table.wide).keys() & covered(table.narrow).keys()


@pytest.mark.parametrize("kind", KINDS)
def test_whole_granules_are_wide(kind: str) -> None:
    table = build_table(make_bucket(kind, [(3, 200), (256,), (8,)]))
    assert table.narrow is None
    assert table.wide is not None
    assert table.wide.rows[:, SIZE].tolist() == [600, 256, 8]


def test_an_end_takes_its_block_along() -> None:
    table = build_table(make_bucket("bf16, 8-bit moments", [(600 + 3,)]))
    assert table.wide is not None
    assert table.narrow is not None
    assert (table.wide.rows[0, SIZE], table.narrow.rows[0, SIZE]) == (512, 91)
    assert table.narrow.rows[0, OFFSET] == 512
    steps = (table.narrow.rows - table.wide.rows)[0, :6].tolist()
    assert steps == [1024, 1024, 512, 512, 8, 8], "bytes of bf16, bf16, two codes, two scales of two blocks"


def test_unaligned_is_narrow() -> None:
    storage = torch.zeros(1 + 64)
    for param, offset in ((storage[1:], 0), (storage[:64], 3)):
        bucket = Bucket([param], [torch.zeros(64)], [torch.zeros(64)], [torch.zeros(64)], offsets=[offset])
        table = build_table(bucket)
        assert table.wide is None
        assert covered(table.narrow) == wanted(bucket)


def test_cache_follows_the_addresses() -> None:
    cache, bucket = TableCache(), make_bucket("fp32")
    first = cache.get(bucket)
    assert cache.get(bucket) is first
    bucket.grads = [grad.clone() for grad in bucket.grads]
    second = cache.get(bucket)
    assert second is not first
    assert covered_grads(second) == {grad.data_ptr() for grad in bucket.grads if grad.numel() and grad.numel() > 1}
    assert cache.get(bucket) is second
    assert all(new.chunks is old.chunks for (new, _), (old, _) in zip(second.parts(), first.parts(), strict=True))
    bucket.params = [param.clone() for param in bucket.params]
    third = cache.get(bucket)
    assert covered(third.wide) | covered(third.narrow) == wanted(bucket)


def test_a_gradient_that_loses_its_alignment_becomes_narrow() -> None:
    cache, bucket = TableCache(), make_bucket("fp32", [(64,), (300,)])
    before = cache.get(bucket)
    assert before.narrow is not None
    assert before.narrow.rows[0, GRAD] == bucket.grads[1].data_ptr() + 4 * 256
    bucket.grads = [torch.zeros(65)[1:], torch.zeros(300)]
    after = cache.get(bucket)
    assert covered_grads(after) == {
        *(grad.data_ptr() for grad in bucket.grads),
        bucket.grads[1].data_ptr() + 4 * 256,
    }
    assert after.narrow is not None
    assert after.narrow.rows[:, SIZE].tolist() == [64, 44]


def covered_grads(table: Table) -> set[int]:
    rows = [row for part, _ in table.parts() for row in part.rows.tolist() if row[SIZE] > 1]
    return {row[GRAD] for row in rows}
