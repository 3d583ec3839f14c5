"""Boundaries of documents: found from positions, checked, shared."""

from __future__ import annotations

import pytest
import torch

from aitrain.errors import ShapeError
from aitrain.ops.attention.documents import Documents, documents_of
from ops.attention.plain import bounds


def positions(*lengths: int) -> list[int]:
    return [i for length in lengths for i in range(length)]


@pytest.mark.parametrize("most", [None, 20])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([positions(4, 1, 3)], [4, 1, 3]),
        ([positions(8)], [8]),
        ([positions(1, 1, 1)], [1, 1, 1]),
        ([positions(3, 2), positions(5)], [3, 2, 5]),
        ([positions(5), positions(5)], [5, 5]),  # a row ends a document even where the positions would go on
        ([[0, 1, 2], [3, 4, 5]], [3, 3]),
        ([[7, 8, 9, 0, 1]], [3, 2]),  # the rest of a document that was split
    ],
)
def test_from_positions(rows: list[list[int]], expected: list[int], most: int | None) -> None:
    found = documents_of(torch.tensor(rows), max_documents=most)
    assert [length for length in found.lengths() if length] == expected
    assert found.total == sum(expected) and found.max_seqlen == len(rows[0])
    assert found.cu_seqlens.dtype == torch.int32 and len(found.cu_seqlens) == (most or len(expected)) + 1
    wanted = [number for number, length in enumerate(expected) for _ in range(length)]
    assert found.of_tokens().tolist() == wanted


@pytest.mark.parametrize("most", [None, 9])
def test_padding_is_a_document_of_its_own(most: int | None) -> None:
    # left padding at positions 1, 1; right padding at positions that would go on; padding in between
    ids = torch.tensor([[1, 1, 0, 1, 2, 3], [0, 1, 0, 1, 2, 3], [0, 1, 5, 2, 3, 4]])
    real = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 0, 1, 1, 1]])
    lengths = documents_of(ids, real, max_documents=most).lengths()
    assert [length for length in lengths if length] == [2, 4, 2, 2, 2, 2, 1, 3]


def test_as_many_documents_as_allowed_and_one_more() -> None:
    ids = torch.tensor([positions(2, 3, 1)])
    assert documents_of(ids, max_documents=3).lengths() == [2, 3, 1]
    with pytest.raises(ShapeError, match="3 documents in the pack, more than max_documents=2"):
        documents_of(ids, max_documents=2)


def test_no_tokens() -> None:
    assert documents_of(torch.zeros(1, 0, dtype=torch.long)).total == 0
    assert documents_of(torch.zeros(2, 0, dtype=torch.long), max_documents=3).lengths() == [0, 0, 0]


@pytest.mark.parametrize(
    ("cu_seqlens", "longest"),
    [
        ([0, 5, 8], None),  # tokens after the last document
        ([1, 5, 9], None),
        ([0, 6, 5, 9], None),
        ([0, 5, 9], 4),
        ([0, 5, 10], None),
    ],
)
def test_wrong_boundaries(cu_seqlens: list[int], longest: int | None) -> None:
    with pytest.raises(ShapeError, match="must rise from 0 to the 9 tokens"):
        Documents(torch.tensor(cu_seqlens), 9, longest)


def test_no_boundaries_at_all() -> None:
    for wrong in (torch.zeros(2, 2, dtype=torch.int32), torch.zeros(3), torch.zeros(0, dtype=torch.int32)):
        with pytest.raises(ShapeError, match="give int32 boundaries"):
            Documents(wrong, 0)
    with pytest.raises(ShapeError, match="give integers"):
        documents_of(torch.zeros(3, 2, 2, dtype=torch.long))
    with pytest.raises(ShapeError, match="must fit position_ids"):
        documents_of(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 5))


def test_longest_is_at_most_all() -> None:
    assert Documents(bounds([3, 4]), 7, 1000).max_seqlen == 7
    assert Documents(bounds([3, 4]), 7).max_seqlen == 7
    assert Documents(bounds([3, 4]), 7, 4).max_seqlen == 4


def test_empty_documents_own_no_token() -> None:
    assert Documents(bounds([0, 2, 0, 0, 3, 0]), 5).of_tokens().tolist() == [1, 1, 4, 4, 4]
