"""Evaluation of a model on held-out data, during training under any strategy, or from a checkpoint."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from aitrain.checkpoint import store
from aitrain.config import RunConfig
from aitrain.config.trainer import Accelerator
from aitrain.data.batches import EvaluationBatches
from aitrain.data.samples import Samples
from aitrain.dist import heartbeat
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.errors import Interrupted, MissingExtraError, RecipeError
from aitrain.recipe import amend
from aitrain.tasks.data_files import source_of
from aitrain.tasks.registry import task_of
from aitrain.tasks.task import Measured, Task
from aitrain.trainer.run_directory import RunDirectory
from aitrain.trainer.stopping import Stopper


def logged(metrics: dict[str, float]) -> dict[str, float]:
    """Return metrics under their names in `metrics.jsonl` and `events.jsonl`.

    Args:
        metrics: From a task.
    """
    return {f"val_{name}": value for name, value in metrics.items()}


@contextmanager
def evaluating(trainer: pl.Trainer) -> Iterator[None]:
    """Switch dropout and gradients off inside the block, in the run's precision.

    Args:
        trainer: A trainer whose strategy is set up.
    """
    model = trainer.strategy.model
    assert model is not None, "the strategy is not set up"
    model.eval()
    try:
        with torch.no_grad(), trainer.strategy.precision_plugin.val_step_context():
            yield
    finally:
        model.train()


class Sums:
    """Adds up the measurements of batches, and restores the order of the samples' rows.

    Args:
        device: Where the sums are kept.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device
        self.sums: torch.Tensor | None = None
        self.rows: list[tuple[list[int], torch.Tensor]] = []

    def add(self, found: Measured, rows: Iterable[int]) -> None:
        """Add one batch.

        Args:
            found: What a task measured.
            rows: Numbers of the samples of the batch.
        """
        sums = found.sums.to(self.device, torch.float64)
        self.sums = sums if self.sums is None else self.sums + sums
        if found.rows is not None:
            numbers = [int(row) for row in rows]
            self.rows.append((numbers, found.rows[: len(numbers)].cpu()))

    def of_all(self, group: Group) -> Measured:
        """Return what all ranks have measured; every rank calls this.

        Args:
            group: The ranks.
        """
        assert self.sums is not None, "every rank measures as many batches, at least one"
        sums = group.sum(self.sums)
        parts = group.everywhere(self.rows)
        if not any(parts):
            return Measured(sums)
        numbers = [number for part in parts for found, _ in part for number in found]
        rows = torch.cat([values for part in parts for _, values in part])
        return Measured(sums, rows[torch.tensor(numbers).argsort()])


def validate(
    trainer: pl.Trainer, task: Task, loader: DataLoader[dict[str, Any]], group: Group, stopper: Stopper
) -> Measured | None:
    """Measure the model on held-out data; every rank calls this.

    Args:
        trainer: A trainer whose strategy is set up.
        task: What is trained.
        loader: This rank's share of the held-out batches, as many on every rank.
        group: The ranks.
        stopper: Whether the run was asked to stop; checked between batches.

    Returns:
        What was measured; None if the run was asked to stop before the end.
    """
    strategy = trainer.strategy
    sums = Sums(strategy.root_device)
    with evaluating(trainer):
        for number, batch in enumerate(loader):
            if stopper.agreed():
                return None
            heartbeat.beat("evaluation")
            moved = strategy.batch_to_device(batch, dataloader_idx=0)
            found: Any = strategy.validation_step(moved, number)
            sums.add(found, batch["rows"])
    return sums.of_all(group)


def answers(trainer: pl.Trainer, task: Task, model: nn.Module, stopper: Stopper) -> list[dict[str, str]]:
    """Return example outputs of the model on inputs that the task chooses; every rank calls this.

    Args:
        trainer: A trainer whose strategy is set up.
        task: What is trained.
        model: Its model.
        stopper: Whether the run was asked to stop.

    Returns:
        One `{"prompt", "answer"}` per input; none when the run was asked to stop before the last.
    """
    with evaluating(trainer):
        found = task.answers(model, trainer.strategy.root_device, stopper.agreed)
    return [] if stopper.agreed() else found


def evaluate_run(
    run: Path,
    data: str | None,
    lm_eval: str | None,
    checkpoint: str,
    changed_inputs: bool = False,
    overrides: Sequence[str] = (),
) -> None:
    """Measure a checkpoint of a run in one process and print what was found.

    Args:
        run: The run directory.
        data: Held-out file; None = the recipe's own held-out data.
        lm_eval: Tasks of the LM evaluation harness, separated by commas; None = the recipe's own measure.
        checkpoint: `newest`, `best` or a step.
        changed_inputs: Measure although the model, or the run's own data, is not what the run began with.
        overrides: How the held-out file is read, where it differs from the training data.

    Raises:
        RecipeError: There is no held-out data to measure, or model or data have changed.
        MissingExtraError: The harness is asked and not installed.
    """
    from aitrain.trainer.facts import code_facts, refuse_difference

    directory = RunDirectory.open(run)
    config = amend(directory.config(), overrides, for_file=True)
    chosen = store.choose(directory.checkpoints(config), checkpoint)
    harness = _harness() if lm_eval is not None else None
    config = measuring(config, data) if lm_eval is None else config
    task = task_of(config)
    then = {} if changed_inputs else chosen.state.get("facts") or directory.facts()
    refuse_difference(then, task.facts() | code_facts(config), config, directory.path)
    model = model_of(task, chosen, directory)
    print(f"{chosen.path} (step {chosen.step})")
    if harness is not None:
        assert lm_eval is not None
        found = harness.simple_evaluate(model=task.harness_model(harness, model), tasks=lm_eval.split(","))
        print(harness.utils.make_table(found))
        return
    splits = task.samples(Group(Ranks(), "cpu"))
    if data is None:
        refuse_difference(then, {"data": splits.fingerprint}, config, directory.path)
    if splits.validation is None:
        raise RecipeError("the run's recipe has no held-out data: give a file with --data FILE")
    measured, told = measure(task, model, splits.validation)
    weight = int(splits.validation.weights.sum())
    print(f"{task.sentence(measured)}, over {weight:,} {task.weight_unit}")
    for entry in told:
        right = f"\n  target  {entry['expected']}" if "expected" in entry else ""
        print(f"prompt  {entry['prompt']}{right}\n  answer  {entry['answer']}")
    directory.event("evaluated", step=chosen.step, data=data or config.data.validation_path, **logged(measured))


def model_of(task: Task, checkpoint: store.Checkpoint, directory: RunDirectory) -> nn.Module:
    """Return the model of a checkpoint, on the GPU where the recipe allows one, in evaluation mode.

    Args:
        task: What was trained.
        checkpoint: The checkpoint.
        directory: The run.
    """
    task.recall(directory.learned(checkpoint.step, checkpoint.state.get("task", {})))
    model = task.trained_model({name: checkpoint.read("weights", name) for name in checkpoint.names("weights")})
    on_gpu = torch.cuda.is_available() and task.config.trainer.accelerator is not Accelerator.cpu
    torch.nn.Module.to(model, "cuda" if on_gpu else "cpu")
    return model.eval()


def measure(
    task: Task, model: nn.Module, held_out: Samples, stop: Callable[[], bool] = lambda: False
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Measure a model on held-out data and return example outputs, in this process alone.

    Args:
        task: What is trained.
        model: Its model, in evaluation mode.
        held_out: The samples.
        stop: Whether to stop early; checked between batches.

    Returns:
        The task's metrics, and the answers.

    Raises:
        Interrupted: It was stopped.
    """
    config = task.config
    rows = config.evaluate.micro_batch_samples or config.trainer.micro_batch_samples or 1
    device = next(model.parameters()).device
    sums, batches = Sums(), EvaluationBatches(held_out, rows, 0, 1)
    with torch.no_grad():
        for batch in (batches[k] for k in range(len(batches))):
            if stop():
                raise Interrupted("the evaluation was interrupted")
            moved = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
            sums.add(task.measure(model, moved), batch["rows"])
        told = task.answers(model, device, stop)
    if stop():
        raise Interrupted("the evaluation was interrupted")
    return task.metrics(sums.of_all(Group(Ranks(), "cpu"))), told


def measure_late(directory: RunDirectory, step: int, stop: Callable[[], bool]) -> None:
    """Run the last evaluation of a run that was stopped during it: its steps are done, so no trainer will.

    Args:
        directory: The run.
        step: Its last step.
        stop: Whether to give up.

    Raises:
        Interrupted: It was stopped; the evaluation is then still due.
    """
    config = directory.config()
    done = step in (event.get("step") for event in directory.all_of("evaluated"))
    if done:
        return
    chosen = store.choose(directory.checkpoints(config), str(step))
    task = task_of(config)
    splits = task.samples(Group(Ranks(), "cpu"))
    if splits.validation is None:
        return
    found, told = measure(task, model_of(task, chosen, directory), splits.validation, stop)
    directory.amend_last_metrics(step, logged(found))
    directory.event("learned", step=step, values=task.learned())  # the checkpoint was written before
    directory.event("evaluated", step=step, **logged(found))
    if told:
        directory.event("answers", step=step, answers=told)


def measuring(config: RunConfig, data: str | None) -> RunConfig:
    """Return the configuration with the held-out data to measure; print what was detected about its files.

    Args:
        config: The run.
        data: Held-out data; None = that of the run.

    Raises:
        RecipeError: It does not exist.
    """
    if data is not None:
        kind = replace(config.data, path=data, validation_path=data, validation_samples=None, max_overlap=1.0)
        source = source_of(data, kind, "--data")
        if not all(file.exists() for file in source.files):
            raise RecipeError(f"--data {data} does not exist: name a file like those of data.path")
        for note in source.notes():
            print(note, file=sys.stderr)
        return replace(config, data=kind)
    return config


def _harness() -> Any:
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("--lm-eval needs the LM evaluation harness: pip install 'aitrain[lm-eval]'")
    import lm_eval
    import lm_eval.models.huggingface
    import lm_eval.utils

    return lm_eval
