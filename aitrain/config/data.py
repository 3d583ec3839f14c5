"""Keys of the group `data`: which records, how they become token sequences."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from aitrain.config.custom import UserClass
from aitrain.config.trainer import AUTO


class RecordFormat(Enum):
    """Shape of one record."""

    auto = "auto"
    messages = "messages"
    prompt_completion = "prompt_completion"
    alpaca = "alpaca"
    sharegpt = "sharegpt"


class OnFault(Enum):
    """What to do with a sample that breaks a rule."""

    refuse = "refuse"
    drop = "drop"


class OnOmission(Enum):
    """What to do with a record of which the chat template leaves something out."""

    refuse = "refuse"
    accept = "accept"


class OnTooLong(Enum):
    """What to do with a sample longer than `data.sequence_tokens`."""

    refuse = "refuse"
    drop = "drop"
    truncate = "truncate"


class Documents(Enum):
    """What one document is in files of plain text."""

    auto = "auto"
    file = "file"
    blank_lines = "blank_lines"


MOST_HELD_OUT = 256
"""Most samples that `data.validation_samples=auto` holds out: enough for a reliable loss, few enough to be quick."""

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
"""Name of a usual delimiter -> the character."""


@dataclass
class Data:
    """Where the samples come from."""

    path: str = field(default=MISSING, metadata={"several": True})
    """The training data: a file, a folder, a pattern such as `'exports/*.csv'`, or several as `[a.csv,b.csv]`. Files:
    `.csv`, `.tsv`, `.xlsx`, `.jsonl`, `.json`, `.parquet`; for plain text also `.txt`, `.md`, `.docx`."""

    validation_path: str | None = field(default=None, metadata={"several": True})
    """Held-out data of the same kind; `null` = `data.validation_samples` are taken from `data.path`."""

    validation_samples: int | None = field(default=None, metadata={"auto": AUTO})
    """Samples held out of `data.path` for evaluation, chosen by `seed`; `null` = none; `auto` = a tenth of them, at
    most 256, where no `validation_path` is given."""

    validation_share: float | None = None
    """Share of `data.path` that is held out where neither `validation_path` nor `validation_samples` is given."""

    max_overlap: float = 0.1
    """Largest share of the held-out samples that may also be training samples; above it the data is refused."""

    shuffle: bool = True
    """Whether the samples are shuffled anew each epoch, from `seed`; off = file order."""

    workers: int = 0
    """Data loader processes per rank; 0 = batches are assembled in the training process."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        if not 0 <= self.max_overlap <= 1:
            yield f"data.max_overlap={self.max_overlap} must be between 0 (no held-out sample is trained on) and 1"
        if self.validation_share is not None and not 0 < self.validation_share < 1:
            yield f"data.validation_share={self.validation_share} must be between 0 and 1, for instance 0.1, or null"
        if self.workers < 0:
            yield f"data.workers={self.workers} must be 0 or more"
        if self.validation_samples is not None and self.validation_samples < 0:
            yield f"data.validation_samples={self.validation_samples} must be at least 1, auto, or null for none"
        if self.validation_path is not None and self.validation_samples:
            yield (
                f"data.validation_samples={self.validation_samples} has no effect together with "
                f"data.validation_path={self.validation_path}: give one of the two"
            )

    def held_out_samples(self, size: int) -> int | None:
        """Return how many samples are held out of the training file; `None` = none.

        Args:
            size: Samples in the training file.
        """
        if self.validation_path is not None:
            return None
        if self.validation_samples == AUTO:
            return None if size < 2 else min(MOST_HELD_OUT, max(1 if size < 10 else 2, round(size / 10)))
        if self.validation_samples is not None:
            return self.validation_samples
        return None if self.validation_share is None else max(1, round(self.validation_share * size))


@dataclass
class Files(Data):
    """A file or folder that the task reads itself."""


@dataclass
class Readable(Data):
    """Data in files that aitrain reads: tables, JSON and text."""

    columns: dict[str, str] = field(default_factory=dict)
    """Your name of a column or key, for each name that aitrain reads: `data.columns.prompt=vraag
    data.columns.completion=antwoord`."""

    encoding: str | None = None
    """Encoding of text files and CSV, for instance `cp1252` (Windows); `null` = detected, and reported."""

    delimiter: str | None = None
    """Delimiter of CSV files: `comma`, `semicolon`, `tab`, `pipe`, or the character; `null` = detected."""

    sheet: str | None = None
    """Sheet of an Excel file; `null` = the first that is not hidden."""

    header_row: int = 1
    """Row of a CSV or Excel file that holds the column names, counted from 1."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        yield from super().faults()
        own = isinstance(self, UserClass)
        usual = Readable()
        for name in ("columns", "encoding", "delimiter", "sheet", "header_row"):
            if own and getattr(self, name) != getattr(usual, name):
                yield f"data.{name} has no effect: data.class reads the files itself; remove it"
        if self.header_row < 1:
            yield f"data.header_row={self.header_row} must be at least 1, the first row"
        if self.delimiter is not None and self.delimiter not in DELIMITERS and len(self.delimiter) != 1:
            yield (
                f"data.delimiter={self.delimiter} must be one character or one of {', '.join(DELIMITERS)}: "
                "write for instance data.delimiter=semicolon"
            )
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError:
            yield f"data.encoding={self.encoding} is not a known encoding: write for instance utf-8, cp1252 or utf-16"
        twice = [name for name in set(self.columns.values()) if list(self.columns.values()).count(name) > 1]
        for name in sorted(twice):
            yield f"data.columns names the column {name!r} twice: give each name its own column"


@dataclass
class Sequences(Readable):
    """Samples that a model reads as token sequences."""

    sequence_tokens: int = 1024
    """Longest sequence in tokens. Memory grows with it."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        if self.sequence_tokens < 2:
            rule = "must be at least 2 (one token to read, one to predict): try 1024"
            yield f"data.sequence_tokens={self.sequence_tokens} {rule}"
        yield from super().faults()


@dataclass
class Records(Sequences):
    """Conversations or instructions: one record per line or row."""

    format: RecordFormat = RecordFormat.auto
    """Shape of the records; `auto` looks at the keys of each record."""

    no_trained_tokens: OnFault = OnFault.refuse
    """A sample without any trained token: `refuse` the data, or `drop` it (counted and reported)."""

    too_long: OnTooLong = OnTooLong.refuse
    """A sample longer than `data.sequence_tokens`: `refuse`, `drop` or `truncate` at the end (counted and reported)."""

    template_omissions: OnOmission = OnOmission.refuse
    """A record of which the model's chat template leaves something out (a thought, a system message, a tool call):
    `refuse` the data, or `accept` that this part is not learned (counted and reported).
    """

    ignore_fields: list[str] = field(default_factory=list)
    """Fields of the records to ignore on purpose although other tools train on them, for instance `[images]`."""


@dataclass
class Text(Sequences):
    """Plain text: documents are joined with the end-of-text token and cut into blocks of `data.sequence_tokens`."""

    text_field: str = "text"
    """Column or JSON key that holds the text; is not used for `.txt`, `.md` and `.docx` files."""

    documents: Documents = Documents.auto
    """What one document is in `.txt` and `.md` files: `blank_lines` separate documents, or each `file` is one; `auto` =
    `blank_lines` in a single `.txt` file, else `file`."""


@dataclass
class CustomRecords(UserClass, Records):
    """Records in your own format: a class in your own file with a method `read(path)` that yields pairs of a
    place ("mails.mbox:17") and a record in one of the known shapes."""


@dataclass
class CustomText(UserClass, Text):
    """Documents in your own format: a class in your own file with a method `read(path)` that yields pairs of a
    place and a document `{"text": "..."}`."""


@dataclass
class Labelled(Sequences):
    """Texts with a label: one record per line or row."""

    text_field: str = "text"
    """Column or JSON key that holds the text."""

    label_field: str = "label"
    """Column or JSON key that holds the label."""

    too_long: OnTooLong = OnTooLong.truncate
    """A text longer than `data.sequence_tokens`: `truncate` at the end or `drop` (both are reported), or `refuse`."""


@dataclass
class Images(Readable):
    """Images with a label: a folder with one subfolder per class, or a table that names image files (CSV, JSON Lines)
    or holds the images (Parquet)."""

    image_field: str = "image"
    """Column or JSON key of a table that names the image file, or in Parquet holds the image."""

    label_field: str = "label"
    """Column or JSON key that holds the label; is not used for folders, whose names are the labels."""


class Layout(Enum):
    """How a table holds several series."""

    auto = "auto"
    long = "long"
    wide = "wide"


class DecimalMark(Enum):
    """What separates the fraction of a number from its whole part."""

    point = "point"
    comma = "comma"


class OnGap(Enum):
    """What to do with steps that have no value."""

    refuse = "refuse"
    mask = "mask"


@dataclass
class Series(Readable):
    """Values over time: a table with one row per step."""

    time_field: str = "time"
    """Column with the time of each row, as `2025-03-31T14:00` or `2025-03-31`."""

    time_format: str | None = None
    """Format of the times if it differs, for instance `%d-%m-%Y %H:%M`; `null` = as above (ISO 8601)."""

    decimal: DecimalMark = DecimalMark.point
    """How CSV files write numbers: `point` (1.5) or `comma` (1,5, where a point separates thousands)."""

    layout: Layout = Layout.auto
    """`long`: one row per time and series, with the columns `value_field` and optionally `series_field`; `wide`: one
    row per time, with a column per series; `auto` = long where there is a column `value_field`.
    """

    value_field: str = "value"
    """Column with the values in a long table."""

    series_field: str = "series"
    """Column with the name of the series in a long table; may be absent if there is only one series."""

    known: list[str] = field(default_factory=list)
    """Columns that are known in advance (prices, holidays, planned production): also used for the steps to forecast."""

    calendar: bool = True
    """Whether to use the hour of the day, the day of the week and the day of the year as known columns."""

    gaps: OnGap = OnGap.refuse
    """Steps without a value: `refuse` the data, or `mask` them: they are neither trained on nor measured (counted and
    reported)."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        yield from super().faults()
        if self.validation_samples is not None:
            yield (
                f"data.validation_samples={self.validation_samples} would hold out single windows, which overlap "
                "others in time: write data.validation_share=0.2 for the last part of every series"
            )
        if self.max_overlap != 0.1:
            yield f"data.max_overlap={self.max_overlap} has no effect on series, whose last part is held out: remove it"


@dataclass
class Tagged(Sequences):
    """Texts with marked words or spans: one record per line."""

    text_field: str = "text"
    """Key that holds the text, if entities are given by their positions in it."""

    entities_field: str = "entities"
    """Key that holds the entities of a text: a list of `{"start": 0, "end": 4, "label": "PERSON"}`, in characters."""

    words_field: str = "tokens"
    """Key that holds a list of words, if each word has its own label."""

    labels_field: str = "labels"
    """Key that holds the labels of the words: `O`, or `B-PERSON` and `I-PERSON` for first and further words."""


@dataclass
class Pairs(Sequences):
    """Questions or search words with a text that answers them: one record per line or row."""

    query_field: str = "query"
    """Column or JSON key that holds the question."""

    positive_field: str = "positive"
    """Column or JSON key that holds a text that answers it."""

    negatives_field: str = "negatives"
    """Key that holds texts which look similar but do not answer it (hard negatives): a text or a list; may be
    absent.
    """


@dataclass
class Preferences(Sequences):
    """Pairs of answers of which one is better: `prompt`, `chosen` and `rejected`, each a text or a list of messages;
    with `task.loss=kto` also single ones: `prompt`, `completion`, and a `label` that is true or false."""

    too_long: OnTooLong = OnTooLong.refuse
    """A record of which one answer is longer than `data.sequence_tokens`: `refuse` the data, or `drop` it."""

    def faults(self) -> Iterator[str]:
        """Yield every broken rule of this group, one sentence each."""
        yield from super().faults()
        if self.too_long is OnTooLong.truncate:
            yield "data.too_long=truncate would cut the end of one answer and not of the other: write refuse or drop"
