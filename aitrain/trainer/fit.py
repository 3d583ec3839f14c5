"""Training from start to end on one rank: data, model, strategy, Lightning's trainer, fit, export."""

from __future__ import annotations

import logging
import os
import random
import socket
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from aitrain.config import RunConfig
from aitrain.config.frozen import from_plain, to_plain
from aitrain.config.trainer import Accelerator
from aitrain.data.batches import EvaluationBatches, MicroBatches, StepPlan, total_steps
from aitrain.data.samples import Splits
from aitrain.dist import heartbeat
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.errors import EXIT_DONE, EXIT_REQUEUE, AitrainError, Interrupted, RecipeError
from aitrain.models.load import Located
from aitrain.strategy.build import build_strategy, lightning_precision
from aitrain.strategy.own_device import OwnDevice
from aitrain.tasks.data_files import reading_notes
from aitrain.tasks.gathering import GatheringTask
from aitrain.tasks.registry import located_model, task_of
from aitrain.tasks.task import Task
from aitrain.trainer.callbacks import own_callbacks
from aitrain.trainer.continuation import (
    compare_inputs,
    refuse_changed_rate,
    set_aside_later,
    starting_point,
)
from aitrain.trainer.display import Display
from aitrain.trainer.late_faults import refuse_finished, refuse_late_faults
from aitrain.trainer.logs import hush_libraries, rank_log
from aitrain.trainer.module import Module
from aitrain.trainer.progress import Progress
from aitrain.trainer.resources import micro_batch, peak_flops
from aitrain.trainer.resume_options import ResumeOptions
from aitrain.trainer.run_directory import RunDirectory
from aitrain.trainer.run_summary import finish, finish_interrupted, finish_stopped_early
from aitrain.trainer.settle import few_steps, settle, settle_precision
from aitrain.trainer.stopping import Stopper, own_signals
from aitrain.trainer.trackers import build_trackers
from aitrain.trainer.training_callback import Session, TrainingCallback


def fit(directory: RunDirectory, ranks: Ranks, group: Group | None = None, options: ResumeOptions | None = None) -> int:
    """Train a run from its frozen configuration, continuing from its newest good checkpoint if it has one.

    Args:
        directory: The run.
        ranks: This process's place.
        group: The process group, when it exists already.
        options: What the user says about continuing.

    Returns:
        The exit code: done, or stopped on purpose with a good checkpoint.

    Raises:
        AitrainError: Anything the user can fix.
    """
    options = options or ResumeOptions()
    heartbeat.tell(run=str(directory.path))
    group, config, accelerator, located = meet(directory, ranks, group)
    quiet()
    with rank_log(directory, ranks), Stopper(group) as stopper:
        task = task_of(config, accelerator, located)
        resume = starting_point(directory, config, group, options)
        progress = Progress.from_state(resume.state if resume else {})
        if progress.is_stopped_early(config.evaluate.patience):
            return finish_stopped_early(directory, group, progress, stopper)
        splits = task.samples(group, lambda: leave_preparing(stopper))
        config = task.config = settle(directory, config, len(splits.train), ranks, group)
        facts = compare_inputs(directory, task, splits, resume, group, options)
        leave_if_asked(directory, stopper)
        plan = plan_steps(config, len(splits.train), ranks, micro_batch(task, ranks, accelerator, group), progress.step)
        steps = plan.steps
        if group.any_true(ranks.is_first and progress.step >= steps and not directory.is_finished):
            return finish_interrupted(directory, group, progress.step, stopper)
        refuse_finished(config, steps, progress)
        refuse_late_faults(task, splits, steps)
        refuse_changed_rate(config, progress, steps, options)
        progress.total_steps = steps
        session = Session(
            config=config,
            directory=directory,
            group=group,
            task=task,
            module=Module(task, ranks.data_size, plan.accumulation, ranks.data_rank, group.gather),
            validation=held_out_loader(config, splits, ranks, plan.micro_batch),
            progress=progress,
            total_steps=steps,
            display=Display(ranks.is_first, steps),
            stopper=stopper,
            trackers=build_trackers(config, directory, progress.step) if ranks.is_first else [],
            resume=resume,
            facts=facts,
            baselines=task.baselines(splits) if ranks.is_first else {},
            flops_per_unit=task.flops_per_unit(),
            peak_flops=peak_flops(accelerator, config.trainer.precision),
        )
        announce(session, plan, accelerator, options)
        trainer = build_trainer(session, accelerator, plan.accumulation)
        run_trainer(trainer, session, train_loader(task, splits, plan))
        is_open = progress.step < steps and not progress.is_stopped_early(config.evaluate.patience)
        return finish(session, EXIT_REQUEUE if stopper.reason is not None and is_open else EXIT_DONE)


def meet(directory: RunDirectory, ranks: Ranks, group: Group | None) -> tuple[Group, RunConfig, str, Located | None]:
    """Connect the ranks: rank 0 reads the configuration, locates the model, and broadcasts both.

    Args:
        directory: The run.
        ranks: This process's place.
        group: The process group, when it exists already.

    Returns:
        The ranks, the configuration, `cpu` or `cuda`, and the model that the task starts from.

    Raises:
        AitrainError: A GPU is requested and there is none, two ranks share one, or the model cannot be used.
    """
    # with ranks of our own launcher the file is on this machine
    group = group or Group(ranks, choose_accelerator(directory.config()))
    config = from_plain(group.by_first(lambda: to_plain(directory.config())))
    accelerator = choose_accelerator(config)
    config = settle_precision(config, accelerator)
    if accelerator == "cuda":
        group.refuse_shared_devices()
    hang_min = config.trainer.hang_min
    heartbeat.tell(hang_s=None if hang_min is None else 60 * hang_min)

    def look() -> Located | None:
        found = located_model(config)
        return None if found is None else found.verified()

    # a GGUF file is converted and a hub name downloaded once, and not by all ranks at the same time
    return group, config, accelerator, group.by_first(look)


def leave_if_asked(directory: RunDirectory, stopper: Stopper) -> None:
    """End here if the run was asked to stop before its first step; every rank calls this.

    Args:
        directory: The run.
        stopper: Whether it was.

    Raises:
        Interrupted: It was.
    """
    if stopper.agreed():
        raise Interrupted(
            f"Interrupted by {stopper.reason} before training continued. Resume with: aitrain resume {directory.path}"
        )


def leave_preparing(stopper: Stopper) -> None:
    """End during data preparation if the run was asked to stop; nothing of the preparation is left.

    Args:
        stopper: Whether it was.

    Raises:
        Interrupted: It was.
    """
    if stopper.reason is not None:
        raise Interrupted(f"Interrupted by {stopper.reason} while the data was prepared; nothing was trained yet")


def plan_steps(config: RunConfig, size: int, ranks: Ranks, rows: int, first_step: int) -> StepPlan:
    """Plan which rank sees which samples at which step.

    Args:
        config: The run.
        size: Training samples.
        ranks: This process's place.
        rows: Micro-batch in samples.
        first_step: Optimizer steps done before.
    """
    batch = config.trainer.global_batch_samples
    _, samples = total_steps(size, batch, config.trainer.max_steps, config.trainer.max_epochs)
    return StepPlan(
        size=size,
        global_batch=batch,
        micro_batch=rows,
        data_rank=ranks.data_rank,
        data_size=ranks.data_size,
        seed=config.seed,
        shuffle=config.data.shuffle,
        total_samples=samples,
        first_step=first_step,
    )


def train_loader(task: Task, splits: Splits, plan: StepPlan) -> DataLoader[dict[str, Any]]:
    """Return this rank's micro-batches, in order, to the end of the run.

    Args:
        task: What is trained.
        splits: The samples.
        plan: Which of them this rank gets at which step.
    """
    batches = MicroBatches(splits.train, plan, whole_share=isinstance(task, GatheringTask))
    return DataLoader(
        batches,
        batch_size=None,
        shuffle=False,
        num_workers=task.config.data.workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else each pass would draw from the generator that dropout draws from
    )


def held_out_loader(config: RunConfig, splits: Splits, ranks: Ranks, rows: int) -> DataLoader[dict[str, Any]] | None:
    """Return this rank's share of the held-out data, or None when there is none.

    Args:
        config: The run.
        splits: The samples.
        ranks: This process's place.
        rows: Micro-batch of training, in samples.
    """
    if splits.validation is None:
        return None
    rows = config.evaluate.micro_batch_samples or rows
    batches = EvaluationBatches(splits.validation, rows, ranks.data_rank, ranks.data_size)
    return DataLoader(batches, batch_size=None, shuffle=False, generator=torch.Generator())


def build_trainer(session: Session, accelerator: str, accumulation: int) -> pl.Trainer:
    """Build Lightning's trainer: it runs the steps; our callback does everything between them (`training_callback.py`).

    Args:
        session: State shared by the parts.
        accelerator: `cpu` or `cuda`.
        accumulation: Micro-batches per rank and optimizer step.
    """
    config, ranks = session.config, session.group.ranks
    if accelerator == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed says that it looked for another in vain
    strategy = build_strategy(config, ranks, accelerator)
    hush_libraries()
    trainer = pl.Trainer(
        accelerator=OwnDevice() if accelerator == "cuda" else "cpu",
        devices=ranks.local_world,
        num_nodes=ranks.nodes,
        strategy=strategy,
        precision=lightning_precision(config),  # type: ignore[arg-type]
        accumulate_grad_batches=accumulation,
        max_epochs=1,
        callbacks=[TrainingCallback(session), *own_callbacks(session)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    own_signals(trainer)
    return trainer


def run_trainer(trainer: pl.Trainer, session: Session, loader: DataLoader[dict[str, Any]]) -> None:
    """Run the training, and turn faults that a user can fix into messages.

    Random initialisation is the same on every rank; dropout is seeded per rank when training starts.

    Args:
        trainer: Lightning's trainer.
        session: State shared by the parts.
        loader: This rank's micro-batches.

    Raises:
        AitrainError: The device ran out of memory.
    """
    random.seed(session.config.seed)
    torch.manual_seed(session.config.seed)
    try:
        trainer.fit(session.module, train_dataloaders=loader)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise AitrainError(out_of_memory(session, trainer.accumulate_grad_batches)) from error


def out_of_memory(session: Session, accumulation: int) -> str:
    """Return what to change after running out of memory.

    Args:
        session: State shared by the parts.
        accumulation: Micro-batches per rank and optimizer step.
    """
    config, world = session.config, session.group.ranks.data_size
    rows = config.trainer.global_batch_samples // (accumulation * world)
    ways = []
    if rows > 1:
        ways.append(f"trainer.micro_batch_samples={rows // 2} (losses stay the same)")
    if not config.trainer.activation_checkpointing:
        ways.append("trainer.activation_checkpointing=true (losses stay the same)")
    if type(config.strategy).__name__ in ("Ddp", "DeepspeedZero1", "DeepspeedZero2") and world > 1:
        ways.append("strategy=deepspeed_zero3")
    ways += session.task.smaller()
    return (
        f"out of memory on rank {session.group.ranks.rank} at step {session.progress.step + 1} with "
        f"micro-batch {rows}: write " + ", or ".join(ways)
    )


def choose_accelerator(config: RunConfig) -> str:
    """Return `cuda` (NVIDIA or AMD) or `cpu`.

    Args:
        config: The run.

    Raises:
        RecipeError: A GPU is requested and torch sees none.
    """
    there = torch.cuda.is_available()
    if config.trainer.accelerator is Accelerator.cuda and not there:
        raise RecipeError(
            "trainer.accelerator=cuda, but torch sees no GPU: write trainer.accelerator=cpu trainer.precision=fp32"
        )
    return "cuda" if there and config.trainer.accelerator is not Accelerator.cpu else "cpu"


def announce(session: Session, plan: StepPlan, accelerator: str, options: ResumeOptions) -> None:
    """Report the start of the run to the user and in `events.jsonl`.

    Args:
        session: State shared by the parts.
        plan: Which samples this rank gets at which step.
        accelerator: `cpu` or `cuda`.
        options: How the run is resumed.
    """
    if not session.is_first:
        return
    ranks, config = session.group.ranks, session.config
    facts = {
        "ranks": ranks.world,
        "nodes": ranks.nodes,
        "accelerator": accelerator,
        "precision": config.trainer.precision.name,
        "micro_batch_samples": plan.micro_batch,
        "gradient_accumulation": plan.accumulation,
        "steps": session.total_steps,
        "samples": plan.size,
        "metric": session.task.primary.name,
        "greater_is_better": session.task.primary.greater_is_better,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    if session.resume is not None:
        set_aside_later(session.directory, config, session.resume, options)
        session.directory.forget_steps_after(session.resume.step)
        session.directory.event("resumed", step=session.resume.step, checkpoint=str(session.resume.path), **facts)
        session.display.say(f"resumed from {session.resume.path} (step {session.resume.step} of {session.total_steps})")
    else:
        session.directory.metrics_file.unlink(missing_ok=True)
        session.directory.event("started", **facts)
        if session.baselines:
            session.directory.event("baselines", **session.baselines)
    warning = few_steps(config, plan.size) if session.resume is None else None
    for note in [*session.task.remarks(), *reading_notes(config), *([] if warning is None else [warning])]:
        session.display.say(note)
    session.display.say(
        f"{plan.size:,} samples, {session.total_steps} steps of {plan.global_batch} {session.task.sample}s: "
        f"{ranks.world} {_device(accelerator)} {'rank' if ranks.world == 1 else 'ranks'}, "
        f"micro-batch {plan.micro_batch}, gradient accumulation {plan.accumulation}"
    )


def _device(accelerator: str) -> str:
    return "CPU" if accelerator == "cpu" else "GPU"


def quiet() -> None:
    """Silence Lightning's advice about features that aitrain provides itself; other warnings and errors remain."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning.pytorch.*")
    warnings.filterwarnings("ignore", message="The `srun` command is available on your system but is not used.*")
    warnings.filterwarnings("ignore", message=".*barrier\\(\\).*device.*")
    # deprecations between Lightning, torch and transformers that no user of ours can act on
    for pattern in (".*isinstance\\(treespec, LeafSpec\\).*", ".*is_gradient_checkpointing.*"):
        warnings.filterwarnings("ignore", message=pattern)
