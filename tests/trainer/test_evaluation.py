"""Means over trained tokens, the same while training and from the checkpoint; answers are the first guesses."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import signal
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.errors import CheckpointError, MissingExtraError, RecipeError
from aitrain.models.load import build_model, load_tokenizer
from aitrain.trainer.evaluation import Validation, evaluate_run, evaluating, generate, validate
from aitrain.trainer.stopping import Stopper

from .conftest import Compose, Ended


def test_means_of_sums() -> None:
    found = Validation.of_sums(torch.tensor([6.0, 3.0, 4.0], dtype=torch.float64))
    assert found == Validation(loss=1.5, perplexity=math.exp(1.5), token_accuracy=0.75, tokens=4)
    assert found.as_metrics() == {"val_loss": 1.5, "val_perplexity": math.exp(1.5), "val_token_accuracy": 0.75}


def test_a_perplexity_beyond_all_numbers_is_the_largest() -> None:
    assert math.isfinite(Validation.of_sums(torch.tensor([1e9, 0.0, 1.0])).perplexity)


class Strategy:
    """As much of a Lightning strategy as evaluation asks for."""

    root_device = torch.device("cpu")

    def __init__(self, fault: bool = False) -> None:
        self.model = nn.Sequential(nn.Dropout(0.5)).train()
        self.precision_plugin = self
        self.fault = fault

    def val_step_context(self) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)

    def batch_to_device(self, batch: torch.Tensor, dataloader_idx: int) -> torch.Tensor:
        return batch

    def validation_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        assert not self.model.training and not torch.is_grad_enabled()
        if self.fault:
            raise ZeroDivisionError
        return batch


class Trainer:
    """Holds a strategy."""

    def __init__(self, fault: bool = False) -> None:
        self.strategy = Strategy(fault)


def test_sums_are_added_over_batches_of_unequal_size() -> None:
    trainer = Trainer()
    batches = [torch.tensor(sums, dtype=torch.float64) for sums in ([4.0, 1.0, 1.0], [0.0, 0.0, 0.0], [2.0, 2.0, 3.0])]
    group = Group(Ranks(), "cpu")
    found = validate(trainer, batches, group, Stopper(group))  # type: ignore[arg-type]
    assert found == Validation(1.5, math.exp(1.5), 0.75, 4)
    assert trainer.strategy.model.training and torch.is_grad_enabled()


def test_training_mode_comes_back_after_a_fault() -> None:
    trainer = Trainer(fault=True)
    group = Group(Ranks(), "cpu")
    with pytest.raises(ZeroDivisionError):
        validate(trainer, [torch.zeros(3)], group, Stopper(group))  # type: ignore[arg-type,list-item]
    assert trainer.strategy.model.training
    with evaluating(trainer):  # type: ignore[arg-type]
        assert not trainer.strategy.model.training


def test_a_signal_is_answered_between_two_batches() -> None:
    group = Group(Ranks(), "cpu")
    seen: list[int] = []

    def batches() -> Iterator[torch.Tensor]:
        for number in range(1000):
            seen.append(number)
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield torch.ones(3)

    with Stopper(group) as stopper:
        assert validate(Trainer(), batches(), group, stopper) is None  # type: ignore[arg-type]
    assert len(seen) <= 4


def test_a_generation_ends_at_the_next_token(small: Compose) -> None:
    config = small('evaluate.prompts=["Translate to Dutch: light"]', "evaluate.max_new_tokens=100")
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 4

    model, tokenizer = build_model(config.model).eval(), load_tokenizer(config.model)
    generate(model, tokenizer, config, torch.device("cpu"), stop)
    assert len(asked) <= 6


def test_answers_are_the_first_guess_at_each_token(small: Compose) -> None:
    config = small('evaluate.prompts=["Translate to Dutch: light"]', "evaluate.max_new_tokens=5")
    model, tokenizer = build_model(config.model).eval(), load_tokenizer(config.model)
    ids = tokenizer("<|im_start|>user\nTranslate to Dutch: light<|im_end|>\n<|im_start|>assistant\n").input_ids
    start = len(ids)
    with torch.no_grad():
        for _ in range(5):
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
            if ids[-1] == tokenizer.eos_token_id:
                break
        found = generate(model, tokenizer, config, torch.device("cpu"))
    expected = tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
    assert found == [{"prompt": "Translate to Dutch: light", "answer": expected}]


def metrics(run: Ended) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.directory.metrics_file.read_text().splitlines()]


@pytest.mark.parametrize(("which", "row"), [("newest", 3), ("2", 1)])
def test_a_checkpoint_has_the_loss_that_was_measured_while_training(
    trained: Ended, which: str, row: int, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_run(trained.directory.path, None, None, which)
    said, measured = capsys.readouterr().out, metrics(trained)[row]
    event = json.loads(trained.directory.events_file.read_text().splitlines()[-1])
    assert (event["event"], event["step"]) == ("evaluated", row + 1)
    for key in ("val_loss", "val_perplexity", "val_token_accuracy"):
        assert event[key] == pytest.approx(measured[key], rel=1e-5)
    assert f"(step {row + 1})\nloss {measured['val_loss']:.4f}," in said
    assert "prompt  Translate to Dutch: light" in said


def test_other_data(trained: Ended, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_run(trained.directory.path, trained.config.data.path, None, "newest")
    said = re.findall(r"loss ([\d.]+),.*over ([\d,]+) tokens", capsys.readouterr().out)
    assert len(said) == 1 and float(said[0][0]) != pytest.approx(metrics(trained)[3]["val_loss"], rel=1e-3)


def test_what_cannot_be_measured_is_refused(trained: Ended) -> None:
    run = trained.directory.path
    with pytest.raises(RecipeError, match=r"--data /no/file\.jsonl does not exist"):
        evaluate_run(run, "/no/file.jsonl", None, "newest")
    with pytest.raises(CheckpointError, match="no checkpoint of step 3"):
        evaluate_run(run, None, None, "3")
    if importlib.util.find_spec("lm_eval") is None:
        with pytest.raises(MissingExtraError, match=r"aitrain\[lm-eval\]"):
            evaluate_run(run, None, "hellaswag", "newest")
