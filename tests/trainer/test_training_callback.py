"""What a run writes at the edges of its steps, and that it stops when the numbers go wrong."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch

from aitrain.checkpoint import store
from aitrain.config.adapter import Lora
from aitrain.data import tokenisation
from aitrain.data.batches import EvaluationBatches
from aitrain.errors import EXIT_DONE, EXIT_REQUEUE, GuardError, Interrupted
from aitrain.models import export as models_export
from aitrain.tasks import prompts
from aitrain.trainer.progress import Progress
from aitrain.trainer.start import resume
from aitrain.trainer.training_callback import _due, seed_rank

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
    # warm-up of one step, then a straight line to 0, which it reaches behind the last step
    assert [record["lr"] for record in found] == pytest.approx([1.5e-3, 3e-3, 2e-3, 1e-3])
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
            ("exported", 4),
            ("finished", 4),
        ]
        + kinds[10:]
    )


def test_a_checkpoint_holds_what_is_trained_and_the_progress(trained: Ended) -> None:
    found = store.choose(trained.directory.checkpoints(trained.config), "newest")
    progress, last = Progress.from_state(found.state), metrics(trained)[-1]
    assert (progress.step, progress.samples, progress.units) == (4, 16, last["tokens"])
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


def test_what_dropout_draws_differs_between_ranks_and_steps() -> None:
    drawn = set()
    for seed, rank, step in ((0, 0, 0), (0, 1, 0), (0, 0, 5), (1, 0, 0)):
        seed_rank(seed, rank, step)
        drawn.add(torch.rand(1).item())
    assert len(drawn) == 4
    seed_rank(0, 1, 0)
    assert torch.rand(1).item() in drawn


class At:
    """Asks this process to stop when something is called for the n-th time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int = 1) -> None:
        self.calls = 0
        original = getattr(owner, name)

        def call(*args: object, **keys: object) -> object:
            self.calls += 1
            if self.calls == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*args, **keys)

        monkeypatch.setattr(owner, name, call)


def whole(small: Compose, folder: Path, *words: str) -> list[dict[str, float]]:
    return metrics(run(small(f"run.dir={folder}", "evaluate.every_steps=2", "schedule=constant", *words)))


def without_time(records: list[dict[str, float]]) -> list[dict[str, float]]:
    timed = ("step_time_s", "tokens_per_s")
    return [{k: v for k, v in record.items() if k not in timed and v is not None} for record in records]


@pytest.mark.parametrize(
    ("number", "saved"),
    [(1, None), (4, 2), (7, 4)],  # in the first evaluation, in that of step 2, in that of the last step
)
def test_stopped_in_an_evaluation_and_resumed_is_the_same_run(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, saved: int | None
) -> None:
    """Each of the three evaluations has three batches; what was not measured is measured when the run goes on."""
    undisturbed = whole(small, tmp_path / "whole")
    with monkeypatch.context() as patch:
        At(patch, EvaluationBatches, "__getitem__", number)
        ended = run(small(f"run.dir={tmp_path}/run", "evaluate.every_steps=2", "schedule=constant"))
    path = ended.directory.path
    assert ended.code == EXIT_REQUEUE
    assert [found.step for found in store.committed(path / "checkpoints")] == ([saved] if saved else [])
    assert ("before the first step" in ended.said) == (saved is None)
    assert resume(path, []) == EXIT_DONE
    assert without_time(metrics(ended)) == [pytest.approx(record, rel=1e-6) for record in without_time(undisturbed)]
    assert events(ended)[-1]["event"] == "finished"


def test_stopped_while_it_answers(small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"run.dir={tmp_path}/run", "evaluate.max_new_tokens=50", 'evaluate.prompts=["light", "dark"]']
    with monkeypatch.context() as patch:
        At(patch, prompts._Stop, "__call__", 3)
        ended = run(small(*words))
    assert ended.code == EXIT_REQUEUE and not metrics_of(ended)
    assert resume(ended.directory.path, []) == EXIT_DONE and len(metrics(ended)) == 4
    assert [event["step"] for event in events(ended) if event["event"] == "answers"] == [0, 4]


def metrics_of(ended: Ended) -> str:
    file = ended.directory.metrics_file
    return file.read_text() if file.is_file() else ""


def test_stopped_while_the_data_is_prepared(
    small: Compose, verses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AITRAIN_CACHE", str(tmp_path / "cache"))
    config = small(f"run.dir={tmp_path}/run")
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="by SIGTERM while the data was prepared"):
        At(patch, tokenisation, "encode")
        run(config)
    assert list((tmp_path / "cache/prepared").iterdir()) == [], "nothing half-written stays"
    assert resume(tmp_path / "run", []) == EXIT_DONE


def test_stopped_while_it_exports(small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        At(patch, models_export, "_write_model")
        ended = run(small(f"run.dir={tmp_path}/run"))
    assert ended.code == EXIT_REQUEUE and not ended.directory.export.exists()
    assert resume(ended.directory.path, []) == EXIT_DONE
    assert (ended.directory.export / "model/config.json").is_file() and len(metrics(ended)) == 4


def test_a_checkpoint_by_time(small: Compose, tmp_path: Path) -> None:
    words = ["checkpoint.every_min=1e-6", "checkpoint.keep=9", "export.at_end=false"]
    ended = run(small(f"run.dir={tmp_path}/run", *words))
    assert [found.step for found in store.committed(ended.directory.path / "checkpoints")] == [1, 2, 3, 4]


@pytest.mark.parametrize(("minutes", "kept"), [("30", [4]), ("null", [1, 2, 3, 4])])
def test_a_better_loss_is_kept_no_more_often_than_by_time(
    small: Compose, tmp_path: Path, minutes: str, kept: list[int]
) -> None:
    words = [f"checkpoint.every_min={minutes}", "checkpoint.keep=9", "evaluate.every_steps=1", "export.at_end=false"]
    ended = run(small(f"run.dir={tmp_path}/run", "schedule=constant", "optim.lr=1e-5", *words))
    assert [found.step for found in store.committed(ended.directory.path / "checkpoints")] == kept
    assert store.choose(ended.directory.path / "checkpoints", "best").step == 4
