"""Means over the held-out data, the same while training and from the checkpoint."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.errors import CheckpointError, DataError, MissingExtraError, RecipeError
from aitrain.tasks.task import Measured, Task
from aitrain.trainer.evaluation import evaluate_run, evaluating, validate
from aitrain.trainer.stopping import Stopper

from .conftest import Ended


class Strategy:
    """As much of a Lightning strategy as evaluation asks for."""

    root_device = torch.device("cpu")

    def __init__(self, fault: bool = False) -> None:
        self.model = nn.Sequential(nn.Dropout(0.5)).train()
        self.precision_plugin = self
        self.fault = fault

    def val_step_context(self) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)

    def batch_to_device(self, batch: dict[str, torch.Tensor], dataloader_idx: int) -> dict[str, torch.Tensor]:
        return batch

    def validation_step(self, batch: dict[str, torch.Tensor], number: int) -> Measured:
        assert not self.model.training and not torch.is_grad_enabled()
        if self.fault:
            raise ZeroDivisionError
        return Measured(batch["sums"], batch.get("values"))


class Trainer:
    """Holds a strategy."""

    def __init__(self, fault: bool = False) -> None:
        self.strategy = Strategy(fault)


class Mean(Task):
    """Knows means, and the rows in their order."""

    def samples(self, group: Group, watch: Any = None) -> Any:
        raise NotImplementedError

    def build(self) -> nn.Module:
        raise NotImplementedError

    def loss_sum(self, model: nn.Module, batch: Any) -> torch.Tensor:
        raise NotImplementedError

    def measure(self, model: nn.Module, batch: Any) -> Measured:
        raise NotImplementedError

    def trained_model(self, weights: Any) -> nn.Module:
        raise NotImplementedError

    def export(self, weights: Any, job: Any) -> None:
        raise NotImplementedError

    def metrics(self, found: Measured) -> dict[str, float]:
        """Return the mean, and the rows as the digits of a number."""
        rows = {} if found.rows is None else {"rows": float("".join(str(int(row)) for row in found.rows))}
        return super().metrics(found) | rows


def batch(*sums: float, rows: Sequence[int] = (), values: Sequence[float] | None = None) -> dict[str, torch.Tensor]:
    made = {"sums": torch.tensor(sums, dtype=torch.float64), "rows": torch.tensor(rows)}
    return made if values is None else made | {"values": torch.tensor(values)}


TASK = Mean(SimpleNamespace(task=SimpleNamespace(unit="rows", sample="row")))  # type: ignore[arg-type]


def test_sums_are_added_over_batches_of_unequal_size() -> None:
    trainer, group = Trainer(), Group(Ranks(), "cpu")
    batches = [batch(4.0, 1.0), batch(0.0, 0.0), batch(2.0, 3.0)]
    found = validate(trainer, TASK, batches, group, Stopper(group))  # type: ignore[arg-type]
    assert found is not None and TASK.metrics(found) == {"loss": 1.5}
    assert trainer.strategy.model.training and torch.is_grad_enabled()


def test_rows_come_in_the_order_of_the_samples_without_those_that_fill_a_batch() -> None:
    group = Group(Ranks(), "cpu")
    batches = [
        batch(1, 1, rows=[3, 1], values=[4, 2]),
        batch(1, 1, rows=[2], values=[3, 9]),
        batch(1, 1, rows=[0], values=[1, 9]),
    ]
    found = validate(Trainer(), TASK, batches, group, Stopper(group))  # type: ignore[arg-type]
    assert found is not None and TASK.metrics(found) == {"loss": 1.0, "rows": 1234.0}


def test_training_mode_comes_back_after_a_fault() -> None:
    trainer = Trainer(fault=True)
    group = Group(Ranks(), "cpu")
    with pytest.raises(ZeroDivisionError):
        validate(trainer, TASK, [batch(0, 0)], group, Stopper(group))  # type: ignore[arg-type]
    assert trainer.strategy.model.training
    with evaluating(trainer):  # type: ignore[arg-type]
        assert not trainer.strategy.model.training


def test_a_signal_is_answered_between_two_batches() -> None:
    group = Group(Ranks(), "cpu")
    seen: list[int] = []

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        for number in range(1000):
            seen.append(number)
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch(1.0, 1.0)

    with Stopper(group) as stopper:
        assert validate(Trainer(), TASK, batches(), group, stopper) is None  # type: ignore[arg-type]
    assert len(seen) <= 4


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


def test_other_data_may_be_read_in_another_way(
    trained: Ended, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "held.csv"
    file.write_text("Export;\nprompt;completion\nIn the beginning;God created\n")
    with pytest.raises(DataError):
        evaluate_run(trained.directory.path, str(file), None, "newest")
    evaluate_run(trained.directory.path, str(file), None, "newest", overrides=["data.header_row=2"])
    said = capsys.readouterr()
    assert "perplexity" in said.out and "held.csv: delimiter semicolon (found;" in said.err


def test_what_cannot_be_measured_is_refused(trained: Ended) -> None:
    run = trained.directory.path
    with pytest.raises(RecipeError, match=r"--data /no/file\.jsonl does not exist"):
        evaluate_run(run, "/no/file.jsonl", None, "newest")
    with pytest.raises(CheckpointError, match="no checkpoint of step 3"):
        evaluate_run(run, None, None, "3")
    if importlib.util.find_spec("lm_eval") is None:
        with pytest.raises(MissingExtraError, match=r"aitrain\[lm-eval\]"):
            evaluate_run(run, None, "hellaswag", "newest")
