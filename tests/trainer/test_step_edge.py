"""What a run writes at the edges of its steps, and that it stops when the numbers go wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from aitrain.checkpoint import store
from aitrain.config.adapter import Lora
from aitrain.errors import EXIT_DONE, GuardError
from aitrain.trainer.progress import Progress
from aitrain.trainer.step_edge import _due

from .conftest import Compose, Ended, run

DESIGN = ["step", "samples", "tokens", "loss", "lr", "grad_norm", "step_time_s", "tokens_per_s", "mfu"]
DESIGN += ["memory_peak_gb", "energy_j"]


def metrics(run: Ended) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.directory.metrics_file.read_text().splitlines()]


def events(run: Ended) -> list[dict]:
    return [json.loads(line) for line in run.directory.events_file.read_text().splitlines()]


def test_every_step_has_the_keys_of_the_design(trained: Ended) -> None:
    assert trained.code == EXIT_DONE
    found = metrics(trained)
    assert [record["step"] for record in found] == [1, 2, 3, 4]
    for record in found:
        assert list(record)[: len(DESIGN)] == DESIGN
        assert record["mfu"] is None and record["memory_peak_gb"] is None, "nothing is made up"
    assert [list(record)[len(DESIGN) :] for record in found] == [[], VALIDATION, [], VALIDATION]


VALIDATION = ["val_loss", "val_perplexity", "val_token_accuracy"]


def test_totals_and_rates(trained: Ended) -> None:
    found = metrics(trained)
    assert [record["samples"] for record in found] == [4, 8, 12, 16]
    # warm-up of one step, then a straight line to 0 at the last one
    assert [record["lr"] for record in found] == pytest.approx([1.5e-3, 3e-3, 1.5e-3, 0.0])
    assert found[0]["tokens"] < found[1]["tokens"] < found[2]["tokens"]
    assert all(record["grad_norm"] > 0 for record in found)
    for before, record in zip([{"tokens": 0}, *found], found, strict=False):
        tokens = record["tokens"] - before["tokens"]
        assert record["tokens_per_s"] == pytest.approx(tokens / record["step_time_s"], rel=1e-3)


def test_events_in_order(trained: Ended) -> None:
    kinds = [(event["event"], event.get("step")) for event in events(trained)][:10]
    assert (
        kinds
        == [
            ("started", None),
            ("evaluated", 0),
            ("answers", 0),
            ("evaluated", 2),
            ("checkpoint", 2),
            ("evaluated", 4),
            ("checkpoint", 4),
            ("answers", 4),
            ("finished", 4),
        ]
        + kinds[9:]
    )


def test_a_checkpoint_holds_what_is_trained_and_the_progress(trained: Ended) -> None:
    found = store.choose(trained.directory.checkpoints(trained.config), "newest")
    progress, last = Progress.from_state(found.state), metrics(trained)[-1]
    assert (progress.step, progress.samples, progress.tokens) == (4, 16, last["tokens"])
    assert progress.validation["4"] == last["val_loss"] and list(progress.validation) == ["0", "2", "4"]
    assert isinstance(trained.config.adapter, Lora)
    weights = found.names("weights")
    assert weights and all("lora_" in name for name in weights)
    assert {name.rsplit(":", 1)[0] for name in found.names("optimizer")} == set(weights)
    assert {name.rsplit(":", 1)[1] for name in found.names("optimizer")} == {"step", "exp_avg", "exp_avg_sq"}
    assert all(found.read("optimizer", f"{name}:step").item() == 4 for name in weights)
    assert found.read("rng", "rank0.cpu").shape == torch.get_rng_state().shape


def test_old_checkpoints_go_and_the_best_one_stays(small: Compose, tmp_path: Path) -> None:
    """The rate is so high that one step is the best there is."""
    ended = run(
        small(
            f"run.dir={tmp_path}/run",
            "model.init=random",
            "optim.lr=0.03",
            "optim.max_grad_norm=null",
            "schedule=constant",
            "schedule.warmup_steps=0",
            "evaluate.every_steps=1",
            "checkpoint.every_steps=1",
            "checkpoint.keep=1",
            "trainer.max_steps=3",
            "export.at_end=false",
        )
    )
    folder = ended.directory.path / "checkpoints"
    losses = Progress.from_state(store.choose(folder, "newest").state).validation
    assert min(losses, key=losses.__getitem__) == "1", "the run was to be best after its first step"
    assert [found.step for found in store.committed(folder)] == [1, 3]
    assert store.choose(folder, "best").step == 1


def test_early_stopping(small: Compose, tmp_path: Path) -> None:
    ended = run(
        small(
            f"run.dir={tmp_path}/run",
            "optim.lr=1e-12",
            "evaluate.every_steps=1",
            "evaluate.patience=2",
            "evaluate.min_improvement=0.1",
            "trainer.max_steps=9",
            "export.at_end=false",
        )
    )
    assert ended.code == EXIT_DONE
    assert len(metrics(ended)) == 2, "two evaluations after the first one without an improvement"
    assert [found.step for found in store.committed(ended.directory.path / "checkpoints")] == [2]
    assert any(event["event"] == "stopped" and "no longer improves" in event["reason"] for event in events(ended))


def test_numbers_that_are_none_stop_the_run_before_they_are_kept(small: Compose, tmp_path: Path) -> None:
    config = small(
        f"run.dir={tmp_path}/run",
        "optim=sgd",
        "optim.lr=1e30",
        "optim.max_grad_norm=null",
        "schedule=constant",
        "schedule.warmup_steps=0",
        "checkpoint.every_steps=1",
        "data.validation_path=null",
    )
    with pytest.raises(GuardError, match=r"(loss|grad_norm)=(nan|inf) at step 2: .* lower optim\.lr \(now 1e\+30\)"):
        run(config)
    assert [found.step for found in store.committed(tmp_path / "run/checkpoints")] == [1]
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(records) == 2 and not (math.isfinite(records[1]["loss"]) and math.isfinite(records[1]["grad_norm"]))


def test_due() -> None:
    assert [step for step in range(1, 8) if _due(3, step)] == [3, 6]
    assert not _due(None, 3)
