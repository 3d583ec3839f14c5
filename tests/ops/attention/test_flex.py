"""flex_attention, uncompiled on the CPU, equals each document alone; compiled and for gradients it needs a GPU."""

from __future__ import annotations

import pytest
import torch

from aitrain.ops.attention import flex
from aitrain.ops.attention.documents import Documents
from aitrain.ops.attention.pattern import Pattern
from ops.attention.plain import PACKS, PATTERNS, bounds, each_alone, tensors

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
LONG = [130, 3, 127, 1, 0, 140]
"""More than one block of 128."""


def without_gradients(lengths: list[int]) -> list[torch.Tensor]:
    return [x.detach() for x in tensors(lengths, width=16)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_each_alone(pattern: str) -> None:
    for lengths in PACKS.values():
        q, k, v = without_gradients(lengths)
        documents = Documents(bounds(lengths), sum(lengths))
        found = flex.attend(q, k, v, documents, Pattern(**PATTERNS[pattern]), compiled=False)
        expected = each_alone(q, k, v, lengths, **PATTERNS[pattern])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_blocks_without_a_common_document_are_skipped() -> None:
    documents = Documents(bounds(LONG), sum(LONG))
    q, k, v = without_gradients(LONG)
    found = flex.attend(q, k, v, documents, Pattern(), compiled=False)
    torch.testing.assert_close(found, each_alone(q, k, v, LONG), rtol=1e-9, atol=1e-11)
    mask = documents.derived[("flex", True, None)]
    dense = mask.to_dense()[0, 0]
    of = documents.of_tokens()
    for i in range(4):
        for j in range(4):
            common = set(of[128 * i : 128 * i + 128].tolist()) & set(of[128 * j : 128 * j + 128].tolist())
            assert bool(dense[i, j]) == (bool(common) and j <= i)


def test_mask_is_made_once_for_each_pattern() -> None:
    lengths = [4, 5]
    documents = Documents(bounds(lengths), 9)
    q, k, v = without_gradients(lengths)
    for pattern in (Pattern(), Pattern(window=2), Pattern(scale=0.1), Pattern(causal=False), Pattern(window=2)):
        flex.attend(q, k, v, documents, pattern, compiled=False)
    masks = [key for key in documents.derived if key != "of_tokens"]
    assert sorted(masks, key=str) == [("flex", False, None), ("flex", True, 2), ("flex", True, None)]


def test_cap_is_one_function() -> None:
    assert flex._cap(30.0) is flex._cap(30.0) and flex._cap(30.0) is not flex._cap(50.0)
