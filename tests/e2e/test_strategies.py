"""Every strategy evaluates, answers prompts, computes in bf16 and hands over to export; on two ranks, for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from aitrain.trainer.run_directory import RunDirectory
from tests.e2e.reference import encode
from tests.e2e.test_equality import SGD, STRATEGIES, Runner, read

PROMPTS = 'evaluate.prompts=["Hello","Who is there?"]'


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_data: Path) -> dict[str, RunDirectory]:
    """All runs of this file, trained in one launch of two ranks."""
    runner = Runner(tmp_path_factory.mktemp("strategies"), tiny_model, tiny_data)
    held_out = [
        f"data.validation_path={tiny_data}",
        "data.max_overlap=1",
        PROMPTS,
        "evaluate.max_new_tokens=8",
        "trainer.max_steps=4",
    ]
    lora = ["adapter=lora", "adapter.rank=4", "optim.lr=1e-3"]
    runs: dict[str, RunDirectory] = {}
    for strategy in STRATEGIES:
        words = [f"strategy={strategy}", *held_out]
        runs[f"{strategy}-fp32"] = runner.make(f"{strategy}-fp32", *words, "optim.lr=1e-3", "export.at_end=true")
        runs[f"{strategy}-bf16"] = runner.make(f"{strategy}-bf16", *words, "optim.lr=1e-3", "trainer.precision=bf16")
        for precision in ("fp32", "bf16"):
            exact = [*SGD, "trainer.micro_batch_samples=1", f"trainer.precision={precision}", "trainer.max_steps=4"]
            runs[f"{strategy}-sgd-{precision}"] = runner.make(
                f"{strategy}-sgd-{precision}", f"strategy={strategy}", *exact
            )
        runs[f"{strategy}-lora-bf16"] = runner.make(f"{strategy}-lora", *words, *lora, "trainer.precision=bf16")
    runner.train(2, runs)
    return runs


def records(directory: RunDirectory) -> list[dict]:
    """Return the steps of a run."""
    return [json.loads(line) for line in directory.metrics_file.read_text().splitlines()]


def events(directory: RunDirectory, kind: str) -> list[dict]:
    """Return the events of one kind."""
    lines = directory.events_file.read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_held_out_losses_and_answers_are_those_of_ddp(directories, strategy):
    found, expected = directories[f"{strategy}-fp32"], directories["ddp-fp32"]
    for ours, theirs in zip(events(found, "evaluated"), events(expected, "evaluated"), strict=True):
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-5)
        assert ours["tokens"] == theirs["tokens"]
    answers = [entry["answers"] for entry in events(found, "answers")]
    assert len(answers) == 2, "before and after"
    assert answers == [entry["answers"] for entry in events(expected, "answers")]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["bf16", "lora-bf16"])
def test_bf16_trains_and_stays_near_fp32(directories, strategy, kind):
    found = [record["loss"] for record in records(directories[f"{strategy}-{kind}"])]
    first = records(directories["ddp-fp32"])[0]["loss"]
    # bf16 keeps 8 bits of each activation; over a few layers a loss near 5.7 moves in its third digit
    assert found[0] == pytest.approx(first, rel=1e-2)
    losses = [event["val_loss"] for event in events(directories[f"{strategy}-{kind}"], "evaluated")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_update_in_bf16_is_as_near_to_fp32_as_that_of_ddp(directories, tiny_model, strategy):
    """With SGD, which hides no error of scale, and four micro-batches a step: gradients add up in fp32."""
    start = load_file(tiny_model / "model.safetensors")
    exact = read(directories["ddp-sgd-fp32"]).weights

    def error(name: str) -> float:
        found = read(directories[name]).weights
        away = sum(float((found[key] - exact[key]).square().sum()) for key in exact)
        return (away / sum(float((exact[key] - start[key]).square().sum()) for key in exact)) ** 0.5

    assert error(f"{strategy}-sgd-fp32") < 1e-4 < error("ddp-sgd-bf16")
    assert 0.5 < error(f"{strategy}-sgd-bf16") / error("ddp-sgd-bf16") <= 2, "no more, and bf16 all the same"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_export_in_plain_transformers_has_the_held_out_loss_of_the_run(directories, tiny_data, strategy):
    directory = directories[f"{strategy}-fp32"]
    model = AutoModelForCausalLM.from_pretrained(directory.export / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory.export / "model")
    total, count = 0.0, 0
    for line in tiny_data.read_text().splitlines():
        ids, trained = encode(tokenizer, json.loads(line)["messages"])
        tokens, marks = torch.tensor([ids]), torch.tensor(trained[1:])
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
        total, count = total + (losses * marks).sum().item(), count + int(marks.sum())
    assert total / count == pytest.approx(events(directory, "evaluated")[-1]["val_loss"], abs=1e-4)
