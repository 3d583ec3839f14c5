"""The samples of a step depend on neither ranks nor micro-batch, and the counts equal a direct count of the labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from aitrain.data.batches import EvaluationBatches, MicroBatches, StepPlan, total_steps
from aitrain.data.order import sample_index
from aitrain.data.token_samples import TokenSamples, collate, pad_token_id
from aitrain.data.token_set import TokenSet, TokenWriter

PAD = 99
SPLITS = [(1, 12), (1, 1), (2, 3), (3, 2), (4, 1), (6, 2), (12, 1)]


@pytest.fixture
def tokens(tmp_path: Path) -> TokenSet:
    """23 samples of unequal length; the first id of a sample is 1000 + its number."""
    draw = np.random.default_rng(0)
    with TokenWriter(tmp_path) as writer:
        for number in range(23):
            length = int(draw.integers(2, 9))
            trained = draw.random(length) < 0.5
            trained[-1] = True
            writer.add([1000 + number, *range(1, length)], trained.tolist())
    return TokenSet.open(tmp_path)


def plan(size: int, split: tuple[int, int], rank: int, total_samples: int, **others: int) -> StepPlan:
    world, micro_batch = split
    return StepPlan(size, 12, micro_batch, rank, world, seed=5, shuffle=True, total_samples=total_samples, **others)


def run(tokens: TokenSet, split: tuple[int, int], total_samples: int) -> dict[int, list[dict]]:
    """All micro-batches of all ranks, by step."""
    steps: dict[int, list[dict]] = {}
    for rank in range(split[0]):
        loader = DataLoader(
            MicroBatches(TokenSamples(tokens, PAD), plan(23, split, rank, total_samples)),
            batch_size=None,
            shuffle=False,
        )
        for batch in loader:
            steps.setdefault(batch["step"], []).append(batch)
    return steps


def sample_ids(batches: list[dict]) -> list[int]:
    return sorted(int(first) - 1000 for batch in batches for first in batch["input_ids"][:, 0] if first != PAD)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("total_samples", [36, 46])  # three full steps; two epochs, the last step not full
def test_the_samples_of_a_step_do_not_depend_on_the_split(
    tokens: TokenSet, split: tuple[int, int], total_samples: int
) -> None:
    expected = {step: sample_ids(batches) for step, batches in run(tokens, (1, 12), total_samples).items()}
    assert {step: sample_ids(batches) for step, batches in run(tokens, split, total_samples).items()} == expected


@pytest.mark.parametrize("split", SPLITS)
def test_rows_follow_the_formula(tokens: TokenSet, split: tuple[int, int]) -> None:
    world, micro_batch = split
    accumulation = 12 // (world * micro_batch)
    for rank in range(world):
        data = MicroBatches(TokenSamples(tokens, PAD), plan(23, split, rank, 36))
        for k in range(len(data)):
            step, a = divmod(k, accumulation)
            numbers = [step * 12 + a * world * micro_batch + rank * micro_batch + m for m in range(micro_batch)]
            expected = [1000 + sample_index(5, n, 23, True) for n in numbers]
            assert data[k]["input_ids"][:, 0].tolist() == expected


@pytest.mark.parametrize("split", SPLITS)
def test_every_sample_once_per_epoch(tokens: TokenSet, split: tuple[int, int]) -> None:
    batches = [batch for step in run(tokens, split, 46).values() for batch in step]
    assert sample_ids(batches) == sorted([*range(23), *range(23)])


@pytest.mark.parametrize("split", SPLITS)
def test_counts_equal_a_direct_count_over_all_ranks(tokens: TokenSet, split: tuple[int, int]) -> None:
    for batches in run(tokens, split, 46).values():
        trained = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        real = sum(int(batch["attention_mask"][row].sum()) for batch in batches for row in range(split[1])
                   if batch["input_ids"][row, 0] != PAD)  # fmt: skip
        assert {batch["global_weight"] for batch in batches} == {trained}
        assert {batch["global_units"] for batch in batches} == {real}
        assert {batch["global_samples"] for batch in batches} == {len(sample_ids(batches))}


@pytest.mark.parametrize("split", SPLITS)
def test_every_rank_runs_as_many_micro_batches(tokens: TokenSet, split: tuple[int, int]) -> None:
    world, micro_batch = split
    accumulation = 12 // (world * micro_batch)
    for rank in range(world):
        batches = list(DataLoader(MicroBatches(TokenSamples(tokens, PAD), plan(23, split, rank, 46)), batch_size=None))
        assert [batch["step"] for batch in batches] == sorted([0, 1, 2, 3] * accumulation)
        assert [batch["last_micro_batch"] for batch in batches] == ([False] * (accumulation - 1) + [True]) * 4
        for batch in batches:
            assert batch["input_ids"].shape[0] == micro_batch and batch["input_ids"].shape[1] >= 2


def test_an_empty_micro_batch_has_no_label_and_one_visible_token_per_row(tokens: TokenSet) -> None:
    last = MicroBatches(TokenSamples(tokens, PAD), plan(23, (6, 2), 5, 13))[1]
    assert last["input_ids"].tolist() == [[PAD, PAD]] * 2
    assert last["attention_mask"].tolist() == [[1, 0]] * 2
    assert last["labels"].tolist() == [[-100, -100]] * 2
    assert last["predicting"].tolist() == [0]
    assert last["global_samples"] == 1


def test_a_continued_run_sees_what_the_whole_run_sees(tokens: TokenSet) -> None:
    whole = MicroBatches(TokenSamples(tokens, PAD), plan(23, (2, 3), 1, 46))
    rest = MicroBatches(TokenSamples(tokens, PAD), plan(23, (2, 3), 1, 46, first_step=2))
    assert len(rest) == len(whole) - 2 * 2
    for k in range(len(rest)):
        for key, value in rest[k].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(whole[k + 4][key])), key


def test_workers_do_not_change_the_order(tokens: TokenSet) -> None:
    data = MicroBatches(TokenSamples(tokens, PAD), plan(23, (2, 3), 0, 46))
    with_workers = DataLoader(data, batch_size=None, num_workers=2)
    assert [batch["input_ids"].tolist() for batch in with_workers] == [
        data[k]["input_ids"].tolist() for k in range(len(data))
    ]


def test_beyond_the_end_is_an_index_error(tokens: TokenSet) -> None:
    data = MicroBatches(TokenSamples(tokens, PAD), plan(23, (1, 12), 0, 46))
    with pytest.raises(IndexError):
        data[4]


def test_collate_by_hand(tmp_path: Path) -> None:
    with TokenWriter(tmp_path) as writer:
        writer.add([5, 6, 7], [True, False, True])
        writer.add([8], [True])
    batch = collate(TokenSet.open(tmp_path), np.array([0, 1]), 3, PAD)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, PAD, PAD], [PAD, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7], [-100, -100, -100], [-100, -100, -100]]
    assert batch["predicting"].tolist() == [1]  # what follows the second position is trained, nothing else
    assert batch.pop("trained_tokens") == 1
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 1), (1, 5), (2, 3), (4, 8), (30, 1)])
def test_evaluation_sees_every_sample_once(tokens: TokenSet, world: int, micro_batch: int) -> None:
    ranks = [
        list(DataLoader(EvaluationBatches(TokenSamples(tokens, PAD), micro_batch, rank, world), batch_size=None))
        for rank in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    everything = [batch for batches in ranks for batch in batches]
    assert sample_ids(everything) == list(range(23))
    for batch in everything:
        assert batch["input_ids"].shape[0] == micro_batch
        assert batch["trained_tokens"] == int((batch["labels"][:, 1:] != -100).sum())
    assert sorted(int(row) for batch in everything for row in batch["rows"]) == list(range(23))


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "expected"),
    [
        (7, None, (7, 28)),
        (None, 1.0, (3, 10)),
        (None, 2.0, (5, 20)),
        (None, 0.5, (2, 5)),
        (None, 0.01, (1, 1)),
    ],
)
def test_total_steps(max_steps: int | None, max_epochs: float | None, expected: tuple[int, int]) -> None:
    assert total_steps(10, 4, max_steps, max_epochs) == expected


def test_a_share_of_an_epoch_is_not_rounded_up_by_binary_fractions() -> None:
    assert 0.07 * 100 > 7
    assert total_steps(100, 4, None, 0.07) == (2, 7)


def test_the_padding_id_falls_back_to_the_end_of_text() -> None:
    class Tokenizer:
        pad_token_id: int | None = None
        eos_token_id: int | None = 7

    tokenizer = Tokenizer()
    assert pad_token_id(tokenizer) == 7
    tokenizer.pad_token_id = 3
    assert pad_token_id(tokenizer) == 3
    tokenizer.pad_token_id, tokenizer.eos_token_id = None, None
    assert pad_token_id(tokenizer) == 0
