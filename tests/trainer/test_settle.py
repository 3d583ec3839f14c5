"""What a recipe leaves open is chosen from data and machine, frozen in the run, and kept when it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aitrain.config import RunConfig
from aitrain.config.frozen import continuation
from aitrain.config.trainer import Precision
from aitrain.data.batches import total_steps
from aitrain.dist.ranks import Ranks
from aitrain.recipe import amend, compose
from aitrain.trainer.fit import fit
from aitrain.trainer.run_directory import RunDirectory
from aitrain.trainer.settle import few_steps, settle_length, settle_precision

GIVEN = ["model.path=asset:tiny-llama", "data.sequence_tokens=96"]


def recipe(*words: str) -> RunConfig:
    return compose("sft_lora", [*GIVEN, "data.path=d.csv", *words])


@pytest.mark.parametrize(
    ("size", "batch", "epochs"),
    [(1, 4, 10), (11, 4, 10), (54, 4, 8), (300, 8, 3), (600, 16, 3), (1_100, 32, 3), (100_000, 32, 3)],
)
def test_batch_and_length_follow_the_number_of_samples(size: int, batch: int, epochs: float) -> None:
    found = settle_length(recipe(), size, ranks=1).trainer
    assert (found.global_batch_samples, found.max_epochs) == (batch, epochs)


def test_enough_steps_wherever_the_data_allows_it() -> None:
    for size in range(44, 3000, 7):
        keys = settle_length(recipe(), size, ranks=1).trainer
        assert total_steps(size, keys.global_batch_samples, None, keys.max_epochs)[0] >= 95, size


def test_every_rank_gets_a_sample() -> None:
    assert settle_length(recipe(), 54, ranks=8).trainer.global_batch_samples == 8
    assert settle_length(recipe("trainer.micro_batch_samples=3"), 54, ranks=4).trainer.global_batch_samples == 12


def test_what_is_given_stays() -> None:
    config = recipe("trainer.max_epochs=2", "trainer.global_batch_samples=6", "trainer.precision=bf16")
    assert settle_length(settle_precision(config, "cpu"), 54, ranks=1) == config


def test_arithmetic_follows_the_machine() -> None:
    assert settle_precision(recipe(), "cpu").trainer.precision is Precision.fp32
    assert settle_precision(recipe(), "cuda").trainer.precision is Precision.bf16


def test_a_short_run_is_warned_of_with_the_words_that_make_it_longer() -> None:
    short = recipe("trainer.max_epochs=3", "trainer.global_batch_samples=32")
    warning = few_steps(short, 54)
    assert warning is not None and "6 optimizer steps (162 samples in batches of 32)" in warning
    assert "write trainer.global_batch_samples=auto trainer.max_epochs=auto" in warning
    words = ["trainer.global_batch_samples=auto", "trainer.max_epochs=auto"]
    assert few_steps(settle_length(recipe(*words), 54, 1), 54) is None
    tiny = few_steps(settle_length(recipe(), 3, 1), 3)
    assert tiny is not None and "add data, or set" in tiny
    by_steps = few_steps(recipe("trainer.max_steps=5", "trainer.max_epochs=null", "trainer.global_batch_samples=4"), 54)
    assert by_steps is not None and by_steps.endswith("write trainer.max_steps=100")


def test_a_run_freezes_what_was_chosen_and_goes_on_with_it(tmp_path: Path) -> None:
    rows = [{"prompt": f"Close {n}", "completion": f"Contract {n} is closed."} for n in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [*GIVEN, f"data.path={tmp_path}/a.jsonl", f"run.dir={tmp_path}/run", "trainer.accelerator=cpu"]
    wanted = compose("sft_lora", [*words, "trainer.max_steps=3", "evaluate.max_new_tokens=4", "schedule=constant"])
    directory = RunDirectory.create(wanted)
    assert directory.config().trainer.max_epochs == 0 and "max_epochs: auto" in directory.config_file.read_text()
    assert fit(directory, Ranks()) == 0
    frozen = directory.config().trainer
    assert (frozen.max_epochs, frozen.global_batch_samples, frozen.precision) == (10.0, 4, Precision.fp32)
    same = continuation(directory.config(), wanted, directory.path)
    assert same.trainer.global_batch_samples == 4 and same.trainer.precision is Precision.fp32
    longer = amend(directory.config(), ["trainer.max_steps=5"])
    directory.freeze(longer)
    assert fit(directory, Ranks()) == 0
    told = [json.loads(line) for line in directory.events_file.read_text().splitlines()]
    (before, *_, after) = [event for event in told if event["event"] == "answers"]
    assert [entry["expected"] for entry in before["answers"]] == [entry["expected"] for entry in after["answers"]]
    assert len(before["answers"]) == 2 and before["answers"][0]["prompt"].startswith("Close ")
    assert before["answers"][0]["expected"] == f"Contract {before['answers'][0]['prompt'].split()[1]} is closed."
