"""Keys of the group `task`: what to learn from the data, and what the other packages need to know about a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from aitrain.config.custom import UserClass
from aitrain.config.model import ModelKind


@dataclass
class Task:
    """What is learned."""

    unit: ClassVar[str] = "samples"
    """What throughput counts: tokens, images, windows."""

    sample: ClassVar[str] = "sample"
    """What one sample is called in messages."""

    model_kind: ClassVar[ModelKind | None] = None
    """Kind of model that `model.path` must name; None = the task brings its own, and `model.path` is null."""

    data_options: ClassVar[tuple[str, ...]] = ()
    """Options of the group `data` that the task takes; empty = any."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        yield from ()


@dataclass
class Sft(Task):
    """Supervised fine-tuning on conversations: the loss is taken on the assistant's turns only."""

    unit: ClassVar[str] = "tokens"
    sample: ClassVar[str] = "sequence"
    model_kind: ClassVar[ModelKind | None] = ModelKind.causal
    data_options: ClassVar[tuple[str, ...]] = ("records", "custom")

    system_prompt: str | None = None
    """System message for conversations that have none; `null` = whatever the chat template does."""


@dataclass
class Pretrain(Task):
    """Continued pretraining on plain text: the loss is taken on every token."""

    unit: ClassVar[str] = "tokens"
    sample: ClassVar[str] = "sequence"
    model_kind: ClassVar[ModelKind | None] = ModelKind.causal
    data_options: ClassVar[tuple[str, ...]] = ("text", "custom_text")


class ClassWeights(Enum):
    """Weight of each class in the loss."""

    equal = "equal"
    balanced = "balanced"


@dataclass
class Classify(Task):
    """Which class a sample belongs to: a label, or with `multi_label` any number of them."""

    multi_label: bool = False
    """Whether a sample may have several labels, or none: a list in JSON, or `a|b` in CSV."""

    class_weights: ClassWeights = ClassWeights.equal
    """`balanced` gives every class the same total weight in the loss, however rare it is."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        if self.multi_label and self.class_weights is ClassWeights.balanced:
            yield "task.class_weights=balanced has no effect with task.multi_label=true: write task.class_weights=equal"


@dataclass
class ClassifyText(Classify):
    """Text classification: one label per text, or with `multi_label` any number of labels."""

    unit: ClassVar[str] = "tokens"
    sample: ClassVar[str] = "text"
    model_kind: ClassVar[ModelKind | None] = ModelKind.encoder
    data_options: ClassVar[tuple[str, ...]] = ("labelled",)


@dataclass
class ClassifyImage(Classify):
    """Image classification: one label per image, or with `multi_label` any number of labels."""

    unit: ClassVar[str] = "images"
    sample: ClassVar[str] = "image"
    model_kind: ClassVar[ModelKind | None] = ModelKind.image
    data_options: ClassVar[tuple[str, ...]] = ("images",)

    linear_probe: bool = False
    """Train only the new last layer and keep the rest frozen: for very few images, or as a baseline."""


@dataclass
class TagTokens(Task):
    """Token classification: spans of a text that are names, dates or whatever else is marked in the training data."""

    unit: ClassVar[str] = "tokens"
    sample: ClassVar[str] = "text"
    model_kind: ClassVar[ModelKind | None] = ModelKind.encoder
    data_options: ClassVar[tuple[str, ...]] = ("tagged",)


class Pooling(Enum):
    """How the token vectors of a text are combined into one."""

    mean = "mean"
    cls = "cls"
    last = "last"


@dataclass
class Embeddings(Task):
    """Text embeddings that are close when one text answers the other: for search in your own documents."""

    unit: ClassVar[str] = "tokens"
    sample: ClassVar[str] = "pair"
    model_kind: ClassVar[ModelKind | None] = ModelKind.encoder
    data_options: ClassVar[tuple[str, ...]] = ("pairs",)

    temperature: float = 0.05
    """Temperature: similarities are divided by it in the loss; smaller = the hardest negatives count more."""

    negatives: int = 1
    """Hard negatives used per question, if the records have them. The other texts of the global batch are negatives
    too.
    """

    symmetric: bool = False
    """Whether the loss also goes from text to question, as for translations."""

    matryoshka: list[int] = field(default_factory=list)
    """Shorter vector lengths that should work as well, for instance `[256,128,64]` (arXiv:2205.13147)."""

    pooling: Pooling = Pooling.mean
    """How the token vectors are combined into one: their mean, the first token, or the last token."""

    query_prefix: str | None = None
    """Prefix of every question, if the model was trained with one, for instance `"query: "`."""

    passage_prefix: str | None = None
    """Prefix of every text that is searched; `null` = none."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        if self.temperature <= 0:
            yield f"task.temperature={self.temperature} must be above 0: 0.05 is usual"
        if self.negatives < 0:
            yield f"task.negatives={self.negatives} must be 0 or more"
        if any(length < 1 for length in self.matryoshka):
            yield f"task.matryoshka={self.matryoshka} must be a list of lengths, each at least 1"


@dataclass
class Reranker(Task):
    """Reranking: scores how well texts answer a question; the question is read together with each text."""

    unit: ClassVar[str] = "tokens"
    sample: ClassVar[str] = "question"
    model_kind: ClassVar[ModelKind | None] = ModelKind.encoder
    data_options: ClassVar[tuple[str, ...]] = ("pairs",)

    negatives: int = 4
    """Negatives per question: first those of its record, then texts of other records."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        if self.negatives < 1:
            yield f"task.negatives={self.negatives} must be at least 1"


class PreferenceLoss(Enum):
    """The loss on a pair of answers."""

    dpo = "dpo"
    ipo = "ipo"
    simpo = "simpo"
    orpo = "orpo"
    kto = "kto"


@dataclass
class Preference(Task):
    """Preference tuning: the better answer of a pair, or a good answer, is made more probable."""

    unit: ClassVar[str] = "tokens"
    sample: ClassVar[str] = "pair"
    model_kind: ClassVar[ModelKind | None] = ModelKind.causal
    data_options: ClassVar[tuple[str, ...]] = ("preferences",)

    loss: PreferenceLoss = PreferenceLoss.dpo
    """`dpo` (arXiv:2305.18290) and `ipo` (2310.12036) compare with the reference model (the model at the start);
    `simpo` (2405.14734) and `orpo` (2403.07691) need no reference. `kto` (2402.01306) also compares with it, and takes
    single answers labelled good or bad.
    """

    beta: float = 0.1
    """How strongly the model is kept close to the reference (dpo, ipo, kto), or the scale of the log-probabilities
    (simpo; 2 is usual); with orpo, the weight of the preference term relative to the likelihood of the better
    answer.
    """

    label_smoothing: float = 0.0
    """Share of the pairs that are expected to be labelled the wrong way round; dpo only."""

    margin: float = 0.5
    """Target margin of the better answer, in mean log-probability times beta; simpo only."""

    good_weight: float = 1.0
    """Weight of a good answer; kto only. If few answers are good, raise it until good and bad ones have equal total
    weight.
    """

    bad_weight: float = 1.0
    """Weight of a bad answer; kto only."""

    system_prompt: str | None = None
    """System message for conversations that have none; `null` = whatever the chat template does."""

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the model as it was at the start."""
        return self.loss in (PreferenceLoss.dpo, PreferenceLoss.ipo, PreferenceLoss.kto)

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        if self.beta <= 0:
            yield f"task.beta={self.beta} must be above 0: 0.1 is usual"
        if not 0 <= self.label_smoothing < 0.5:
            yield f"task.label_smoothing={self.label_smoothing} must be at least 0 and below 0.5"
        for key in ("good_weight", "bad_weight"):
            value = getattr(self, key)
            if value < 0:
                yield f"task.{key}={value} must be 0 or more"
            if value != 1 and self.loss is not PreferenceLoss.kto:
                yield f"task.{key}={value} has no effect with task.loss={self.loss.name}: remove it"
        if self.label_smoothing and self.loss is not PreferenceLoss.dpo:
            yield f"task.label_smoothing={self.label_smoothing} has no effect with task.loss={self.loss.name}: write 0"


@dataclass
class Forecast(Task):
    """Forecasting of time series with uncertainty: meter readings, sales, levels, temperatures."""

    unit: ClassVar[str] = "windows"
    sample: ClassVar[str] = "window"
    data_options: ClassVar[tuple[str, ...]] = ("series",)

    horizon_steps: int = 24
    """Steps to forecast."""

    context_steps: int = 336
    """Steps that the model sees before them; a series that is too short is padded at its beginning and masked."""

    quantiles: list[float] = field(default_factory=lambda: [0.1, 0.5, 0.9])
    """Quantiles to forecast: the value falls below the 0.1 quantile in one of ten cases. 0.5 must be among them."""

    season_steps: int | None = None
    """Steps after which values repeat; `null` = a day for steps of an hour or less, else a week or a year. The baseline
    forecast repeats the last season, and its error is the unit of the metric (MASE)."""

    window_stride: int = 1
    """Steps between the starts of two training windows."""

    patch_steps: int = 16
    """Steps per token; half of them overlap with the next token."""

    width: int = 128
    """Width of the transformer."""

    layers: int = 3
    """Transformer blocks."""

    heads: int = 8
    """Attention heads; the width must be divisible by them."""

    dropout: float = 0.1
    """Dropout in the blocks."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        for name in ("horizon_steps", "context_steps", "window_stride", "width", "layers", "heads"):
            if getattr(self, name) < 1:
                yield f"task.{name}={getattr(self, name)} must be at least 1"
        if not 2 <= self.patch_steps <= max(self.context_steps, 2):
            yield f"task.patch_steps={self.patch_steps} must be from 2 to task.context_steps={self.context_steps}"
        if self.heads > 0 and self.width % self.heads:
            yield f"task.width={self.width} is not divisible by task.heads={self.heads}: write 8 heads, for instance"
        if not 0 <= self.dropout < 1:
            yield f"task.dropout={self.dropout} must be at least 0 and below 1"
        if self.season_steps is not None and self.season_steps < 1:
            yield f"task.season_steps={self.season_steps} must be at least 1, or null"
        inside = all(0 < level < 1 for level in self.quantiles)
        if not inside or 0.5 not in self.quantiles or sorted(set(self.quantiles)) != list(self.quantiles):
            yield f"task.quantiles={self.quantiles} must increase, lie between 0 and 1, and include 0.5"


@dataclass
class CustomTask(UserClass, Task):
    """Your own task: a class in your own file that implements `aitrain.tasks.task.Task`."""
