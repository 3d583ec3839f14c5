"""From data files to token sets: tokenised and masked once into a content-addressed cache, with a summary of it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aitrain.config.custom import UserClass
from aitrain.config.data import Records, Sequences, Text
from aitrain.config.task import Sft, Task
from aitrain.config.trainer import AUTO
from aitrain.data.cached import cached
from aitrain.data.masking import require_fast
from aitrain.data.order import sample_indices
from aitrain.data.records import check_source
from aitrain.data.report import Report, SourceReport
from aitrain.data.source import Source
from aitrain.data.token_set import DIGEST_BYTES, TokenSet
from aitrain.data.tokenisation import DOCUMENTS, Progress, Tokenisation
from aitrain.errors import DataError
from aitrain.io.user_code import digests

FORMAT_VERSION = 2
"""Raised whenever the same input would give other token sets, so that old ones are not reused."""

_HOLD_OUT = 0x5EED_0F_4E1D
"""Separates the random choice of held-out samples from the training order."""


@dataclass(frozen=True)
class Files:
    """Data files, found."""

    train: Source
    validation: Source | None = None

    @classmethod
    def of(cls, train: Path, validation: Path | None = None) -> Files:
        """Return single files, with format and encoding detected.

        Args:
            train: File to train on.
            validation: File to measure with.
        """
        return cls(Source.of(train), None if validation is None else Source.of(validation))

    @property
    def all(self) -> list[Source]:
        """The training data, then the held-out data where it is named."""
        return [self.train] if self.validation is None else [self.train, self.validation]


@dataclass(frozen=True)
class Prepared:
    """Training and held-out data of a run."""

    train: TokenSet
    validation: TokenSet | None
    report: Report
    folders: list[Path]
    """Folders of the token sets, for `open_prepared` on other ranks: training, then validation where a file is
    named.
    """


def prepare(
    data: Sequences, task: Task, tokenizer: Any, cache: Path, seed: int, files: Files, progress: Progress | None = None
) -> Prepared:
    """Tokenise and mask the data, or find it in the cache: a folder named by a checksum of everything that determines
    it.

    Args:
        data: `Records` or `Text`.
        task: `Sft` needs records, `Pretrain` needs text.
        tokenizer: A fast transformers tokenizer, with a chat template for records.
        cache: Folder of all prepared data; made when absent. Several processes may use it at once.
        seed: Chooses the held-out samples.
        files: The data files.
        progress: Called with the progress; not called if the data is cached.

    Returns:
        Token sets and the account of them.

    Raises:
        DataError: The audit refuses the data.
        ModelError: The tokenizer cannot be used.
        AitrainError: The cache cannot be written.
    """
    require_fast(tokenizer)
    folders = [_source(source, data, task, tokenizer, cache, progress) for source in files.all]
    prepared = open_prepared(folders, data, seed)
    return _with_overlap(prepared, data)


def _with_overlap(prepared: Prepared, data: Sequences) -> Prepared:
    """Count the held-out samples that are also training samples, and refuse more than the recipe allows."""
    if prepared.validation is None:
        return prepared
    if isinstance(data, Text) and len(prepared.folders) > 1:
        trained, held = (_documents(folder) for folder in prepared.folders)
    else:
        trained, held = list(prepared.train.digests()), list(prepared.validation.digests())
    seen, size = set(trained), len(held)
    overlap = sum(digest in seen for digest in held)
    if overlap > data.max_overlap * size:
        held_out = prepared.report.sources[-1].file
        raise DataError(
            f"{held_out}: {overlap:,} of {size:,} held-out samples are also training samples, so the held-out loss "
            f"would not measure what the model has learned: remove them from one of the two, or write "
            f"data.max_overlap={math.ceil(100 * overlap / size) / 100:g}"
        )
    return replace(prepared, report=replace(prepared.report, overlap=overlap))


def _documents(folder: Path) -> list[bytes]:
    content = (folder / DOCUMENTS).read_bytes()
    return [content[at : at + DIGEST_BYTES] for at in range(0, len(content), DIGEST_BYTES)]


def open_prepared(folders: list[Path], data: Sequences, seed: int) -> Prepared:
    """Map data that `prepare` has written; reads no data file and needs no tokenizer.

    Args:
        folders: `Prepared.folders`.
        data: How many samples of the first are held out.
        seed: Chooses them.

    Returns:
        Token sets and the account of them; the same on every rank.

    Raises:
        DataError: A folder is damaged, or as many samples shall be held out as there are.
    """
    sets, sources = [], []
    for folder in folders:
        try:
            sets.append(TokenSet.open(folder))
            sources.append(SourceReport.load(folder / "report.json"))
        except (OSError, ValueError, KeyError, TypeError) as fault:
            raise DataError(f"prepared data in {folder} is damaged ({fault}): remove that folder") from None
    train, validation = sets[0], sets[1] if len(sets) > 1 else None
    count = data.held_out_samples(len(train)) if len(folders) == 1 else None
    if count is not None:
        if count >= len(train):
            raise DataError(
                f"data.validation_samples={count} leaves nothing to train on: {sources[0].file} has {len(train)} "
                "sequences"
            )
        held_out = _once(train, count, seed) if data.validation_samples == AUTO else _held_out(len(train), count, seed)
        validation = train.select(held_out)
        train = train.select(np.setdiff1d(np.arange(len(train)), held_out))
    report = Report(sources, len(train), len(validation) if validation is not None else 0)
    return Prepared(train, validation, report, folders)


def _once(train: TokenSet, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Choose samples without duplicates, so that no held-out sample is trained on; others if these are too few."""
    times = Counter(train.digests())
    order = sample_indices(seed ^ _HOLD_OUT, np.arange(len(train), dtype=np.int64), len(train), shuffle=True)
    digests = list(train.digests())
    ranked = sorted(order, key=lambda index: times[digests[index]] > 1)
    return np.sort(np.array(ranked[:count], dtype=np.int64))


def _held_out(size: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    return np.sort(sample_indices(seed ^ _HOLD_OUT, np.arange(count, dtype=np.int64), size, shuffle=True))


def _source(
    source: Source, data: Sequences, task: Task, tokenizer: Any, cache: Path, progress: Progress | None
) -> Path:
    """Return the folder of one prepared source, written now if it is not there."""
    if not isinstance(data, UserClass):
        check_source(source)
    digest = source.digest()
    job = Tokenisation(source, digest, data, task, tokenizer, progress, _lines(source))
    return cached(cache, _content(source, digest, data, task, tokenizer), job.write)


def _lines(source: Source) -> int | None:
    """Return the number of records, for progress, if each line is one; None if it is not known beforehand."""
    if not all(file.name.lower().endswith(".jsonl") for file in source.files):
        return None
    count = 0
    for path in source.files:
        last = b"\n"
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                count += block.count(b"\n")
                last = block[-1:]
        count += last != b"\n"
    return count


def _content(source: Source, digest: str, data: Sequences, task: Task, tokenizer: Any) -> dict[str, Any]:
    """Return everything that determines the token set; held-out samples and order are chosen later."""
    content: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "file": [source.name, digest],
        **tokenizer_content(tokenizer),
        "sequence_tokens": data.sequence_tokens,
    }
    if isinstance(data, UserClass):
        content["reader"] = [digests(data.file), data.class_, data.options]
    if isinstance(data, Text):
        content["text"] = data.text_field
    elif isinstance(data, Records) and isinstance(task, Sft):
        rules = (data.no_trained_tokens, data.too_long, data.template_omissions)
        content["records"] = [data.format.name, [rule.name for rule in rules], sorted(data.ignore_fields)]
        content["conversation"] = [tokenizer.chat_template, task.system_prompt]
    return content


def tokenizer_content(tokenizer: Any) -> dict[str, Any]:
    """Return everything that determines how a tokenizer splits text, as plain values.

    Args:
        tokenizer: A fast transformers tokenizer.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # state of the last call, not of the tokenizer
    backend.pop("truncation", None)
    backend.pop("padding", None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return {"tokenizer": backend, "special_tokens": special}


def sample_text(tokenizer: Any, tokens: Iterable[int], trained: Iterable[bool], coloured: bool = True) -> str:
    """Return a sample as text: trained tokens in bold green, the rest dim; or between [[ and ]] without colours.

    Args:
        tokenizer: The tokenizer that made it.
        tokens: Token ids.
        trained: Whether the loss is taken on each of them.
        coloured: Whether a terminal shows it; a file or a pipe gets brackets.

    Returns:
        Text; control characters of the data are shown, not sent.
    """
    runs: list[tuple[bool, list[int]]] = []
    for token, mark in zip(tokens, trained, strict=True):
        if not runs or runs[-1][0] != bool(mark):
            runs.append((bool(mark), []))
        runs[-1][1].append(int(token))
    parts = []
    for mark, ids in runs:
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # U+2400 and on are the pictures of the control characters.
        shown = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text)
        if coloured:
            parts.append(("\x1b[1;32m" if mark else "\x1b[2m") + shown + "\x1b[0m")
        else:
            parts.append(f"[[{shown}]]" if mark else shown)
    return "".join(parts)
