"""What is written is read back, sequence by sequence, and counted as a direct count does."""

from pathlib import Path

import numpy as np

from aitrain.data.token_set import TokenSet, TokenWriter

SEQUENCES = [
    ([1, 2, 3], [False, True, True]),
    ([7], [True]),  # its only token has nothing before it
    ([4, 5, 6, 2**31 - 1], [True, False, False, True]),
]


def write(folder: Path) -> TokenSet:
    with TokenWriter(folder) as writer:
        for ids, trained in SEQUENCES:
            writer.add(ids, trained)
    return TokenSet.open(folder)


def test_round_trip(tmp_path: Path) -> None:
    tokens = write(tmp_path)
    assert [(ids.tolist(), trained.tolist()) for ids, trained in (tokens[i] for i in range(len(tokens)))] == SEQUENCES
    assert tokens.lengths.tolist() == [3, 1, 4]
    assert tokens.tokens.dtype == np.int32 and tokens.trained.dtype == np.bool_ and tokens.offsets.dtype == np.int64


def test_the_first_token_of_a_sequence_is_never_counted(tmp_path: Path) -> None:
    assert write(tmp_path).trained_counts.tolist() == [2, 0, 1]


def test_a_selection_reads_the_same_sequences(tmp_path: Path) -> None:
    chosen = write(tmp_path).select(np.array([2, 0])).select(np.array([0]))
    assert len(chosen) == 1
    assert chosen[0][0].tolist() == SEQUENCES[2][0]
    assert chosen.lengths.tolist() == [4] and chosen.trained_counts.tolist() == [1]


def test_many_sequences_grow_the_header_in_place(tmp_path: Path) -> None:
    with TokenWriter(tmp_path) as writer:
        for number in range(1, 12_001):
            writer.add([number], [False])
    assert np.load(tmp_path / "tokens.npy").tolist() == list(range(1, 12_001))


def test_no_sequence_at_all(tmp_path: Path) -> None:
    with TokenWriter(tmp_path):
        pass
    assert np.load(tmp_path / "tokens.npy").shape == (0,)
