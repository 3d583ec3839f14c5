"""A configuration as a short readable table of what will run."""

from __future__ import annotations

from dataclasses import fields

from aitrain.config.cluster import Cluster
from aitrain.config.custom import UserClass
from aitrain.config.data import Sequences
from aitrain.config.paths import listed
from aitrain.config.root import OPTION_OF, RunConfig
from aitrain.config.task import CustomTask
from aitrain.config.trainer import AUTO, Precision
from aitrain.config.values import format_value, spelled


def describe(config: RunConfig) -> str:
    """Return what will run, one line per subject.

    Args:
        config: A checked configuration.
    """
    rows = [
        ("run", f"{config.run.name} in {config.run.dir or f'runs/{config.run.name}-<time>'}, seed {config.seed}"),
        ("task", f"{_task(config)} on {_option(config.data)}"),
        ("model", _model(config)),
        ("adapter", _with_keys(config.adapter)),
        ("data", _data(config)),
        ("held out", _held_out(config)),
        ("length", _length(config)),
        ("batch", _batch(config)),
        ("optimizer", _with_keys(config.optim)),
        ("schedule", _with_keys(config.schedule)),
        ("devices", _devices(config)),
        ("strategy", _with_keys(config.strategy)),
        ("evaluation", _evaluation(config)),
        ("checkpoints", _checkpoints(config)),
        ("logging", "metrics.jsonl" + ("" if _option(config.logger) == "jsonl" else f", {_with_keys(config.logger)}")),
        ("export", _export(config)),
    ]
    if config.cluster != Cluster():
        rows.append(("cluster", f"{_keys(config.cluster)}; only `aitrain submit` reads this"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _task(config: RunConfig) -> str:
    return _with_keys(config.task) if isinstance(config.task, UserClass) else _option(config.task)


def _option(group: object) -> str:
    return OPTION_OF[type(group)]


def _with_keys(group: object) -> str:
    """Return the option and those of its keys that have a value."""
    return " ".join(filter(None, [_option(group), _keys(group)]))


def _keys(group: object) -> str:
    """Return the keys of a group that have a value."""
    pairs = [(spelled(field.name), getattr(group, field.name)) for field in fields(group)]  # type: ignore[arg-type]
    return " ".join(f"{name}={format_value(value)}" for name, value in pairs if value is not None and value != {})


def _data(config: RunConfig) -> str:
    longest = (
        f", sequences of at most {config.data.sequence_tokens} tokens" if isinstance(config.data, Sequences) else ""
    )
    return f"{', '.join(listed(config.data.path))}{longest}"


def _model(config: RunConfig) -> str:
    if config.model.path is None:
        return "built by the task"
    return f"{config.model.path} ({config.model.init.name}, attention {config.model.attention.name})"


def _held_out(config: RunConfig) -> str:
    if isinstance(config.task, CustomTask) and not config.has_validation:
        return "chosen by the task"
    if config.data.validation_path is not None:
        return ", ".join(listed(config.data.validation_path))
    if config.data.validation_samples is not None:
        size = config.data.validation_samples
        return f"{size} samples of data.path" if size else "a tenth of data.path, at most 256 samples"
    share = config.data.validation_share
    return "nothing" if share is None else f"{100 * share:g} % of data.path"


def _length(config: RunConfig) -> str:
    steps, epochs = config.trainer.max_steps, config.trainer.max_epochs
    limits = [f"{steps} steps"] if steps is not None else []
    if epochs is not None:
        named = f"{format_value(epochs)} {'epoch' if epochs == 1 else 'epochs'}"
        limits.append("epochs chosen from the data" if epochs == AUTO else named)
    return " or ".join(limits) + (", whichever is reached first" if len(limits) > 1 else "")


def _batch(config: RunConfig) -> str:
    micro = config.trainer.micro_batch_samples
    at_once = "chosen from available memory" if micro is None else str(micro)
    size = config.trainer.global_batch_samples
    batch = f"{size} {config.task.sample}s per step over all devices" if size else "global batch chosen from the data"
    return f"{batch}; micro-batch per device: {at_once}"


def _devices(config: RunConfig) -> str:
    trainer = config.trainer
    devices = "all devices here" if trainer.devices is None else f"devices={trainer.devices}"
    nodes = "" if trainer.nodes is None else f", nodes={trainer.nodes}"
    is_open = trainer.precision is Precision.auto
    precision = "bf16 on GPUs, fp32 on CPUs" if is_open else trainer.precision.name
    saving = ", activation checkpointing" if trainer.activation_checkpointing else ""
    return f"{trainer.accelerator.name}, {devices}{nodes}, {precision}{saving}"


def _evaluation(config: RunConfig) -> str:
    prompts = len(config.evaluate.prompts)
    prompts += config.evaluate.answered_samples if config.has_validation else 0
    answered = f", {prompts} prompts answered before and after" if prompts else ""
    if not config.has_validation and not isinstance(config.task, CustomTask):
        return f"none{answered}"
    return f"before the first step, {_every(config.evaluate.every_steps, 'after the last')}{answered}"


def _every(steps: int | None, otherwise: str) -> str:
    return otherwise if steps is None else f"every {steps} steps and {otherwise}"


def _checkpoints(config: RunConfig) -> str:
    keys = config.checkpoint
    times = [] if keys.every_min is None else [f"every {format_value(keys.every_min)} minutes"]
    times += [] if keys.every_steps is None else [f"every {keys.every_steps} steps"]
    return f"{', '.join([*times, 'at the end'])}; newest {keys.keep} kept"


def _export(config: RunConfig) -> str:
    if not config.export.at_end:
        return "only with `aitrain export`"
    kind = "model folder" if config.task.model_kind is None else "Hugging Face folder"
    return f"{kind} at the end" + (
        ", adapter merged" if config.export.merge and _option(config.adapter) != "none" else ""
    )
