"""The audit of `aitrain check`: finds what `train` would refuse without loading weights, and shows the data."""

from __future__ import annotations

from aitrain.config import RunConfig
from aitrain.data.batches import total_steps
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.models.licence import told_licence
from aitrain.preflight import usable_devices
from aitrain.tasks.data_files import reading_notes
from aitrain.tasks.registry import task_of
from aitrain.tasks.task import Task
from aitrain.trainer.fit import choose_accelerator
from aitrain.trainer.late_faults import refuse_late_faults
from aitrain.trainer.resources import micro_batch
from aitrain.trainer.settle import few_steps, settle_length, settle_precision


def audit(config: RunConfig, show: int) -> bool:
    """Build what needs no weights, prepare the data and print a summary of it.

    Args:
        config: A configuration whose recipe, machine and files were checked.
        show: Samples to print with their trained tokens coloured.

    Returns:
        Whether there were no warnings.

    Raises:
        RecipeError: The run could not be trained as asked.
        ModelError: The model cannot be used.
        DataError: The data is refused.
    """
    accelerator = choose_accelerator(config)
    config = settle_precision(config, accelerator)
    task = task_of(config, accelerator)
    task.dry_build()
    if task.located is not None:
        licence = told_licence(config.model.path, task.located.facts.licence)
        print(f"licence of the base model: {licence or 'not stated in its folder, see its source'}")
    for remark in task.remarks():
        print(remark)
    count = usable_devices(config)
    is_clean = _audit_data(task, show, count)
    micro_batch(task, Ranks(world=count, local_world=count), accelerator, Group(Ranks(), "cpu"))
    return is_clean


def _audit_data(task: Task, show: int, ranks: int) -> bool:
    config = task.config
    for note in reading_notes(config):
        print(note)
    found = task.samples(Group(Ranks(), "cpu"))
    print(found.report.text())
    size = len(found.train)
    config = task.config = settle_length(config, size, ranks)
    batch = config.trainer.global_batch_samples
    steps, samples = total_steps(size, batch, config.trainer.max_steps, config.trainer.max_epochs)
    print(f"{steps} steps of {batch} {task.sample}s: {samples:,} samples, {samples / size:.2f} epochs")
    warning = few_steps(config, size)
    if warning is not None:
        print(warning)
    refuse_late_faults(task, found, steps)
    for index in range(min(show, size)):
        print(f"\n{task.shown_sample(found.train, index)}")
    return warning is None
