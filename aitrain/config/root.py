"""The complete configuration of a run, its options, and the rules across groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from omegaconf import MISSING

from aitrain.config.adapter import Adapter, Dora, Lora, NoAdapter, Qlora
from aitrain.config.checkpoint import Checkpoint
from aitrain.config.cluster import Cluster
from aitrain.config.custom import UserClass
from aitrain.config.data import (
    CustomRecords,
    CustomText,
    Data,
    Files,
    Images,
    Labelled,
    Pairs,
    Preferences,
    Records,
    Series,
    Tagged,
    Text,
)
from aitrain.config.evaluate import Evaluate
from aitrain.config.export import Export
from aitrain.config.logger import Jsonl, Logger, Tensorboard, Wandb
from aitrain.config.model import Model, ModelInit
from aitrain.config.optim import AdamW, AdamW8bit, CustomOptim, Muon, Optim, Sgd
from aitrain.config.run import Run
from aitrain.config.schedule import Constant, Cosine, CustomSchedule, Linear, Schedule, Wsd
from aitrain.config.strategy import Ddp, DeepspeedZero1, DeepspeedZero2, DeepspeedZero3, Fsdp, Strategy
from aitrain.config.task import (
    ClassifyImage,
    ClassifyText,
    CustomTask,
    Embeddings,
    Forecast,
    Preference,
    Pretrain,
    Reranker,
    Sft,
    TagTokens,
    Task,
)
from aitrain.config.trainer import Accelerator, Trainer

GROUPS: dict[str, dict[str, type]] = {
    "task": {
        "sft": Sft,
        "pretrain": Pretrain,
        "preference": Preference,
        "classify_text": ClassifyText,
        "classify_image": ClassifyImage,
        "tag_tokens": TagTokens,
        "embeddings": Embeddings,
        "reranker": Reranker,
        "forecast": Forecast,
        "custom": CustomTask,
    },
    "data": {
        "records": Records,
        "text": Text,
        "labelled": Labelled,
        "images": Images,
        "series": Series,
        "tagged": Tagged,
        "pairs": Pairs,
        "preferences": Preferences,
        "files": Files,
        "custom": CustomRecords,
        "custom_text": CustomText,
    },
    "adapter": {"none": NoAdapter, "lora": Lora, "dora": Dora, "qlora": Qlora},
    "optim": {"adamw": AdamW, "adamw_8bit": AdamW8bit, "muon": Muon, "sgd": Sgd, "custom": CustomOptim},
    "schedule": {"constant": Constant, "linear": Linear, "cosine": Cosine, "wsd": Wsd, "custom": CustomSchedule},
    "strategy": {
        "ddp": Ddp,
        "fsdp": Fsdp,
        "deepspeed_zero1": DeepspeedZero1,
        "deepspeed_zero2": DeepspeedZero2,
        "deepspeed_zero3": DeepspeedZero3,
    },
    "logger": {"jsonl": Jsonl, "wandb": Wandb, "tensorboard": Tensorboard},
}
"""Groups with a choice: group -> option -> dataclass."""

OPTION_OF: dict[type, str] = {cls: name for options in GROUPS.values() for name, cls in options.items()}
"""Dataclass -> the option's name as users type it."""


@dataclass
class RunConfig:
    """Everything that determines a run; frozen as `run.yaml` and read by every rank."""

    seed: int = 0
    """Determines initialisation, data order and dropout."""

    run: Run = field(default_factory=Run)
    task: Task = MISSING
    model: Model = field(default_factory=Model)
    data: Data = MISSING
    adapter: Adapter = MISSING
    optim: Optim = MISSING
    schedule: Schedule = MISSING
    trainer: Trainer = field(default_factory=Trainer)
    strategy: Strategy = MISSING
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    evaluate: Evaluate = field(default_factory=Evaluate)
    export: Export = field(default_factory=Export)
    logger: Logger = MISSING
    cluster: Cluster = field(default_factory=Cluster)

    def check(self) -> list[str]:
        """Return every broken rule, inside the groups first, then across them; empty when all hold."""
        faults = [fault for f in fields(self) if f.name != "seed" for fault in getattr(self, f.name).faults()]
        for group in (f.name for f in fields(self) if isinstance(getattr(self, f.name), UserClass)):
            faults += [f"{group}.{fault}" for fault in getattr(self, group).code_faults()]
        return faults + list(self._cross_faults())

    def _cross_faults(self) -> Iterator[str]:
        if self.seed < 0:
            yield f"seed={self.seed} must be 0 or more"
        yield from self._task_faults()
        own = isinstance(self.task, CustomTask)  # holds out what it likes
        if self.evaluate.every_steps is not None and not self.has_validation and not own:
            yield (
                f"evaluate.every_steps={self.evaluate.every_steps} has no held-out data to measure: "
                "add data.validation_samples=100 or data.validation_path=FILE"
            )
        cpu = self.trainer.accelerator is Accelerator.cpu
        if cpu and isinstance(self.adapter, Qlora):
            yield "adapter=qlora needs a GPU (4-bit kernels), but trainer.accelerator=cpu: write adapter=lora"
        if cpu and isinstance(self.optim, AdamW8bit):
            yield "optim=adamw_8bit needs a GPU, but trainer.accelerator=cpu: write optim=adamw"
        if isinstance(self.optim, AdamW8bit) and not isinstance(self.strategy, Ddp):
            yield (
                f"optim=adamw_8bit needs unsharded parameters (one scale per 256 elements), but strategy="
                f"{OPTION_OF[type(self.strategy)]} shards them: write strategy=ddp or optim=adamw"
            )
        if cpu and self.model.attention.name == "flash_attention_2":
            rule = "needs a GPU, but trainer.accelerator=cpu: write model.attention=sdpa"
            yield f"model.attention=flash_attention_2 {rule}"
        if isinstance(self.adapter, Qlora) and isinstance(self.strategy, (Fsdp, DeepspeedZero3)):
            rule = f"strategy={OPTION_OF[type(self.strategy)]} cannot shard them; write strategy=ddp"
            yield f"adapter=qlora needs its 4-bit weights complete on every rank: {rule}"
        if isinstance(self.optim, Muon) and not isinstance(self.strategy, Ddp):
            yield (
                f"optim=muon needs unsharded matrices, but strategy={OPTION_OF[type(self.strategy)]} shards "
                "them: write strategy=ddp or optim=adamw"
            )
        if self.model.init is ModelInit.random and not isinstance(self.adapter, NoAdapter):
            yield (
                f"adapter={OPTION_OF[type(self.adapter)]} with model.init=random cannot be exported, because the base "
                "weights are not saved anywhere: write adapter=none or model.init=pretrained"
            )
        yield from self.batch_faults(self.trainer.devices, self.trainer.nodes)

    def _task_faults(self) -> Iterator[str]:
        """Yield the requirements of a task that other groups do not meet."""
        name = OPTION_OF[type(self.task)]
        if self.task.model_kind is not None and self.model.path is None:
            yield f"model.path=null: task={name} starts from a model: name a Hugging Face folder"
        elif self.task.model_kind is None and self.model.path is not None and not isinstance(self.task, CustomTask):
            yield f"model.path={self.model.path} has no effect: task={name} brings its own model: write model.path=null"
        bare = self.task.model_kind is None and not isinstance(self.task, CustomTask)
        if bare and not isinstance(self.adapter, NoAdapter):
            option = OPTION_OF[type(self.adapter)]
            yield f"adapter={option} has nothing to adapt: task={name} starts from random weights; write adapter=none"
        if isinstance(self.task, ClassifyImage) and self.task.linear_probe and not isinstance(self.adapter, NoAdapter):
            option = OPTION_OF[type(self.adapter)]
            yield f"adapter={option} trains more than the last layer, task.linear_probe=true nothing else: write one"
        if isinstance(self.task, Sft) and not isinstance(self.data, Records):
            yield "task=sft needs data=records (conversations or instructions); for plain text write task=pretrain"
        elif isinstance(self.task, Pretrain) and not isinstance(self.data, Text):
            yield "task=pretrain needs data=text (plain text); for conversations write task=sft"
        elif self.task.data_options and OPTION_OF.get(type(self.data)) not in self.task.data_options:
            own = self.task.data_options
            yield f"task={name} needs data={' or data='.join(own)}"

    @property
    def has_validation(self) -> bool:
        """Whether the recipe names held-out data."""
        data = self.data
        return (data.validation_path, data.validation_samples, data.validation_share) != (None, None, None)

    def batch_faults(self, devices: int | None, nodes: int | None) -> Iterator[str]:
        """Yield the fault of a global batch that does not split evenly over ranks and micro-batches."""
        ranks = (devices or 1) * (nodes or 1)
        per_rank = self.trainer.micro_batch_samples or 1
        batch, at_once = self.trainer.global_batch_samples, ranks * per_rank  # 0 = chosen to fit, later
        if batch >= 1 and at_once >= 1 and batch % at_once:
            lower, upper = batch // at_once * at_once, (batch // at_once + 1) * at_once
            advice = f"{lower} or {upper}" if lower else str(upper)
            yield (
                f"trainer.global_batch_samples={batch} is not a multiple of {ranks} devices x {per_rank} per device: "
                f"write {advice}"
            )
