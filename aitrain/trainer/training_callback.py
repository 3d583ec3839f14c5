"""What happens between two optimizer steps, in order: log, evaluate, save, stop."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from aitrain.checkpoint import store
from aitrain.config import RunConfig
from aitrain.dist import heartbeat
from aitrain.dist.group import Group
from aitrain.errors import GuardError
from aitrain.optim.build import set_learning_rate
from aitrain.optim.schedule import learning_rate_factor
from aitrain.tasks.task import Measured, Task
from aitrain.trainer.display import Display
from aitrain.trainer.evaluation import answers, evaluating, logged, validate
from aitrain.trainer.module import Module
from aitrain.trainer.progress import Progress
from aitrain.trainer.run_directory import RunDirectory
from aitrain.trainer.stopping import Stopper


@dataclass
class Session:
    """State that the parts of a training run share.

    Attributes:
        config: The run.
        directory: Its directory.
        group: The ranks.
        task: What is trained.
        module: Its model under training.
        validation: This rank's held-out batches, or None.
        progress: How far the run is.
        total_steps: Optimizer steps of the whole run.
        display: The progress display.
        stopper: Whether the run was asked to stop.
        trackers: Lightning loggers in addition to `metrics.jsonl`; empty on every rank but the first.
        resume: The checkpoint the run continues from, or None.
        facts: Checksums of model and data, for the checkpoints.
        flops_per_unit: Floating-point operations per unit of forward and backward, an estimate; None = not known.
        peak_flops: Peak of one device, or None if it is not known.
        baselines: Metrics of trivial baselines on the held-out data.
        measured: What the last evaluation has found.
        before: What the model answered before training.
        after: What it answers now.
        picture: Where the task has drawn what was measured at the end.
        curves: Where the curves of the run are drawn.
    """

    config: RunConfig
    directory: RunDirectory
    group: Group
    task: Task
    module: Module
    validation: DataLoader[dict[str, Any]] | None
    progress: Progress
    total_steps: int
    display: Display
    stopper: Stopper
    trackers: list[Logger]
    resume: store.Checkpoint | None
    facts: dict[str, Any]
    flops_per_unit: float | None
    peak_flops: float | None
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    measured: Measured | None = None
    curves: Path | None = None
    before: list[dict[str, str]] | None = None
    after: list[dict[str, str]] | None = None
    picture: Path | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes and prints."""
        return self.group.ranks.is_first


class TrainingCallback(pl.Callback):
    """Runs at the start and end of every optimizer step.

    Args:
        session: State shared by the parts.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._edge = self._saved_at = 0.0
        self._norm: torch.Tensor | None = None
        self._lr = math.nan

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the state of the checkpoint, and evaluate the starting point.

        Args:
            trainer: Lightning's trainer.
            pl_module: The task.
        """
        session = self.session
        seed_rank(session.config.seed, session.group.ranks.data_rank, session.progress.step)
        self._tell_notes(trainer)
        if session.resume is not None:
            restore(trainer, session.resume, session.group.ranks.rank)
            self._catch_up(trainer)
        else:
            self._evaluate(trainer)
        if session.progress.step == 0 and not session.stopper.agreed():
            session.before = answers(trainer, session.task, session.module.built, session.stopper)
            self._event("answers", step=0, answers=session.before) if session.before else None
        if session.stopper.agreed():
            trainer.should_stop = True
        self._edge = self._saved_at = time.monotonic()

    def _catch_up(self, trainer: pl.Trainer) -> None:
        """Run the evaluation that was due at the checkpoint's step when the run was stopped there."""
        session = self.session
        step = session.progress.step
        if str(step) in session.progress.validation or not _due(session.config.evaluate.every_steps, step):
            return
        record: dict[str, Any] = {}
        self._evaluate(trainer, record)
        if session.is_first and record:
            session.directory.amend_last_metrics(step, record)
        if session.progress.is_stopped_early(session.config.evaluate.patience):
            self._save(trainer)
            trainer.should_stop = True
            self._event("stopped", reason=EARLY)

    def _tell_notes(self, trainer: pl.Trainer) -> None:
        """Report what the task has to say about its model."""
        session = self.session
        with evaluating(trainer):
            notes = list(session.task.starting_notes(session.module.built, trainer.strategy.root_device))
        for note in notes:
            self._event(note.event, **note.facts)
            session.display.say(note.line)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Mapping[str, Any], batch_idx: int
    ) -> None:
        """Set the learning rate of the optimizer step that this micro-batch belongs to.

        Args:
            trainer: Lightning's trainer.
            pl_module: The task.
            batch: The micro-batch.
            batch_idx: Its number.
        """
        session = self.session
        heartbeat.beat(f"step {session.progress.step + 1}")
        factor = learning_rate_factor(session.config.schedule, session.progress.step, session.total_steps)
        self._lr = set_learning_rate(trainer.strategy.optimizers[0], factor)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Clip the gradient of the whole global batch (DeepSpeed's engine clips by itself).

        Args:
            trainer: Lightning's trainer.
            pl_module: The task.
            optimizer: Its optimizer.
        """
        strategy: Any = trainer.strategy
        self._norm = strategy.clip_gradients(self.session.config.optim.max_grad_norm)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Mapping[str, Any], batch_idx: int
    ) -> None:
        """At the end of an optimizer step: log, evaluate, save, stop.

        Args:
            trainer: Lightning's trainer.
            pl_module: The task.
            outputs: Not used.
            batch: The micro-batch.
            batch_idx: Its number.
        """
        if not batch["last_micro_batch"]:
            return
        session, config = self.session, self.session.config
        record = self._measure(trainer, batch)
        done = session.progress.step
        last = done == session.total_steps
        stop, due = session.stopper.agreed_with(self._is_time(config.checkpoint.every_min))
        improved = False
        if not stop and (last or _due(config.evaluate.every_steps, done)):
            improved = self._evaluate(trainer, record) and config.checkpoint.every_min is None
            stop = session.stopper.agreed()
        if session.is_first:
            session.directory.metrics(record)
            for tracker in session.trackers:
                tracker.log_metrics({k: v for k, v in record.items() if v is not None and k != "step"}, step=done)
        self._guard(record)
        early = session.progress.is_stopped_early(config.evaluate.patience)
        if last or stop or early or improved or due or _due(config.checkpoint.every_steps, done):
            self._save(trainer)
        if stop or early:
            trainer.should_stop = True
            asked = str(session.stopper.reason)
            self._event("stopped", reason=EARLY if early else f"signal {asked}" if asked.startswith("SIG") else asked)
        if (last or early) and not stop:
            session.after = answers(trainer, session.task, session.module.built, session.stopper)
            self._event("answers", step=done, answers=session.after) if session.after else None
        self._edge = time.monotonic()

    def _is_time(self, every_min: float | None) -> bool:
        """Whether rank 0 finds that the last checkpoint is old enough."""
        return self.session.is_first and every_min is not None and time.monotonic() - self._saved_at >= 60 * every_min

    def _measure(self, trainer: pl.Trainer, batch: Mapping[str, Any]) -> dict[str, Any]:
        session, strategy = self.session, trainer.strategy
        assert session.module.loss_sum is not None
        loss = session.group.sum(session.module.loss_sum.double()).item() / batch["global_weight"]
        session.module.loss_sum = None
        norm = self._norm if self._norm is not None else strategy.last_gradient_norm()  # type: ignore[attr-defined]
        self._norm = None
        seconds = time.monotonic() - self._edge
        progress = session.progress
        progress.step += 1
        progress.samples += batch["global_samples"]
        progress.units += batch["global_units"]
        progress.seconds += seconds
        unit, per_s = session.task.unit, batch["global_units"] / seconds
        cuda = strategy.root_device.type == "cuda"
        left_s = (session.total_steps - progress.step) * progress.seconds / progress.step
        session.display.step(progress.step, loss, f"{per_s:,.0f} {unit}/s", left_s)
        return {
            "step": progress.step,
            "samples": progress.samples,
            unit: progress.units,
            "loss": loss,
            "lr": self._lr,
            "grad_norm": float(norm) if norm is not None else None,
            "step_time_s": round(seconds, 6),
            f"{unit}_per_s": round(per_s, 3),
            "mfu": self._mfu(per_s),
            "memory_peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3) if cuda else None,
            "energy_j": None,
        }

    def _mfu(self, per_s: float) -> float | None:
        """Return the model FLOPs utilisation (MFU), if both rates are known."""
        flops, peak = self.session.flops_per_unit, self.session.peak_flops
        return float(f"{flops * per_s / self.session.group.ranks.world / peak:.4g}") if flops and peak else None

    def _evaluate(self, trainer: pl.Trainer, record: dict[str, Any] | None = None) -> bool:
        session = self.session
        if session.validation is None:
            return False
        task = session.task
        measured = validate(trainer, task, session.validation, session.group, session.stopper)
        if measured is None:  # asked to stop: the resumed run continues with this evaluation
            return False
        session.measured, found = measured, task.metrics(measured)
        value = found[task.primary.name]
        improved = session.progress.judge(value, task.primary, session.config.evaluate.min_improvement)
        if record is not None:
            record.update(logged(found))
        held_out: Any = session.validation.dataset
        over = {task.weight_unit: held_out.samples.weights.sum().item()}
        self._event("evaluated", step=session.progress.step, **logged(found), **over)
        session.display.say(f"step {session.progress.step}: held-out {task.sentence(found)}")
        return improved and session.progress.step > 0

    def _save(self, trainer: pl.Trainer) -> None:
        session, strategy = self.session, trainer.strategy
        began = time.monotonic()
        folder = session.directory.checkpoints(session.config)
        session.progress.note_kept(session.task.primary)
        facts = {"facts": session.facts, "task": session.task.learned()}
        path = save(trainer, folder, session.progress, session.group, facts)
        if session.is_first:
            store.prune(folder, session.config.checkpoint.keep, session.progress.best_step)
        self._event(
            "checkpoint", step=session.progress.step, path=str(path), seconds=round(time.monotonic() - began, 3)
        )
        strategy.barrier()
        self._saved_at = time.monotonic()
        session.stopper.limit.note_save(self._saved_at - began)

    def _event(self, kind: str, **facts: Any) -> None:
        if self.session.is_first:
            self.session.directory.event(kind, **facts)

    def _guard(self, record: dict[str, Any]) -> None:
        for key in ("loss", "grad_norm"):
            value = record[key]
            if value is not None and not math.isfinite(value):
                raise GuardError(
                    f"{key}={value} at step {record['step']}: the run was stopped without a checkpoint "
                    f"of this step; start a new run with a lower optim.lr (now {self.session.config.optim.lr:g})"
                )


EARLY = "early: the validation metric no longer improves"
"""Why a run with `evaluate.patience` stopped by itself."""


def seed_rank(seed: int, rank: int, step: int) -> None:
    """Seed torch differently on every rank: random draws in training (dropout) must differ between them.

    A resumed run restores the generators of its checkpoint; this is for ranks that the checkpoint does not have.

    Args:
        seed: The recipe's seed.
        rank: This rank.
        step: Optimizer steps done.
    """
    content = f"{seed}/{rank}/{step}".encode()
    torch.manual_seed(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1)


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def save(trainer: pl.Trainer, folder: Any, progress: Progress, group: Group, facts: dict[str, Any]) -> Any:
    """Write a checkpoint of a run; every rank calls this.

    Args:
        trainer: A trainer whose strategy is set up.
        folder: Folder of the checkpoints.
        progress: How far the run is.
        group: The ranks.
        facts: Plain values to keep with it.

    Returns:
        The checkpoint's directory.
    """
    strategy: Any = trainer.strategy
    rng = {"cpu": torch.get_rng_state().tolist()}
    if strategy.root_device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state().tolist()
    of_ranks = group.to_first(rng)
    generators = [
        (f"rank{rank}.{kind}", torch.tensor(state, dtype=torch.uint8))
        for rank, states in enumerate(of_ranks)
        for kind, state in states.items()
    ]
    tensors = {
        "weights": strategy.full_weights(),
        "optimizer": ((f"{name}:{key}", value) for name, key, value in strategy.full_optimizer_state()),
        "rng": generators,
    }
    return store.save(folder, progress.step, tensors, progress.as_state() | facts, group)


def restore(trainer: pl.Trainer, checkpoint: store.Checkpoint, rank: int) -> None:
    """Load a checkpoint's weights, optimizer state and random generators into a run that is set up.

    Args:
        trainer: A trainer whose strategy is set up.
        checkpoint: A verified checkpoint, written by any strategy on any number of ranks.
        rank: This rank.
    """
    strategy: Any = trainer.strategy
    strategy.put_full_weights(lambda name: checkpoint.read("weights", name))
    keys: dict[str, list[str]] = {}
    for entry in checkpoint.names("optimizer"):
        name, key = entry.rsplit(":", 1)
        keys.setdefault(name, []).append(key)
    strategy.put_full_optimizer_state(keys, lambda name, key: checkpoint.read("optimizer", f"{name}:{key}"))
    saved = checkpoint.names("rng")
    if f"rank{rank}.cpu" in saved:
        torch.set_rng_state(checkpoint.read("rng", f"rank{rank}.cpu"))
    if f"rank{rank}.cuda" in saved and strategy.root_device.type == "cuda":
        torch.cuda.set_rng_state(checkpoint.read("rng", f"rank{rank}.cuda"))
