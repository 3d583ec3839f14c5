"""From data files to token sets: tokenised and masked once into a content-addressed cache, with an account of it."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aitrain.config.data import Data, OnFault, OnTooLong, Records, Text
from aitrain.config.task import Sft, Task
from aitrain.data.chat_template import ChatTemplate
from aitrain.data.conversation import to_messages
from aitrain.data.masking import Encoded, encode_conversations, require_fast
from aitrain.data.order import sample_indices
from aitrain.data.records import Placed, check_file, read_records
from aitrain.data.report import Places, Report, SourceReport
from aitrain.data.token_set import TokenSet, TokenWriter
from aitrain.errors import AitrainError, DataError, ModelError
from aitrain.io import new_directory

FORMAT_VERSION = 1
"""Raised whenever the same input would give other token sets, so that old ones are not used."""

_AT_ONCE = 256
"""Records tokenised together: enough for a fast tokenizer to use all cores, little enough for memory."""

_HOLD_OUT = 0x5EED_0F_4E1D
"""Keeps the draw of held-out samples apart from the order of training."""

Progress = Callable[[int, int | None], None]
"""Called with records done and in all, None where that is not known beforehand; at the end the two are equal."""


@dataclass(frozen=True)
class Files:
    """Data files, resolved."""

    train: Path
    validation: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """What a run trains and is measured on."""

    train: TokenSet
    validation: TokenSet | None
    report: Report
    folders: list[Path]
    """Where the token sets lie, for `open_prepared` on other ranks: training, then validation where a file is named."""


def prepare(
    data: Data, task: Task, tokenizer: Any, cache: Path, seed: int, files: Files, progress: Progress | None = None
) -> Prepared:
    """Tokenise and mask the data, or find it done: a folder named by the content of everything that decides it.

    Args:
        data: `Records` or `Text`.
        task: `Sft` needs records, `Pretrain` needs text.
        tokenizer: A fast transformers tokenizer, with a chat template for records.
        cache: Folder of all prepared data; made when absent. Several processes may use it at once.
        seed: Chooses the held-out samples.
        files: The data files.
        progress: Told how far it is; not called where the data is found done.

    Returns:
        Token sets and the account of them.

    Raises:
        DataError: The audit refuses the data.
        ModelError: The tokenizer cannot be used.
        AitrainError: The cache cannot be written.
    """
    require_fast(tokenizer)
    folders = [
        _source(path, data, task, tokenizer, cache, progress)
        for path in (files.train, files.validation)
        if path is not None
    ]
    return open_prepared(folders, data.validation_samples, seed)


def open_prepared(folders: list[Path], validation_samples: int | None, seed: int) -> Prepared:
    """Map data that `prepare` has written; reads no data file and needs no tokenizer.

    Args:
        folders: `Prepared.folders`.
        validation_samples: Samples to hold out of the first, or None.
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
    if validation_samples is not None:
        if validation_samples >= len(train):
            raise DataError(
                f"data.validation_samples={validation_samples} leaves nothing to train on: {sources[0].file} has "
                f"{len(train)} sequences"
            )
        held_out = _held_out(len(train), validation_samples, seed)
        validation = train.select(held_out)
        train = train.select(np.setdiff1d(np.arange(len(train)), held_out))
    report = Report(sources, len(train), len(validation) if validation is not None else 0)
    return Prepared(train, validation, report, folders)


def _held_out(size: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    return np.sort(sample_indices(seed ^ _HOLD_OUT, np.arange(count, dtype=np.int64), size, shuffle=True))


def _source(path: Path, data: Data, task: Task, tokenizer: Any, cache: Path, progress: Progress | None) -> Path:
    """Return the folder of one prepared file, written now if it is not there."""
    check_file(path)
    digest, lines = _digest(path)
    folder = cache / _key(path, digest, data, task, tokenizer)
    if folder.exists():
        return folder
    total = lines if path.name.lower().endswith(".jsonl") else None
    job = _Job(path, data, task, tokenizer, progress, total)
    try:
        with new_directory(folder) as unfinished:
            job.write(unfinished)
    except FileExistsError:
        # Another process was faster; what it wrote has the same name because it has the same content.
        return folder
    except OSError as fault:
        if fault.errno in (errno.ENOTEMPTY, errno.EEXIST) and folder.exists():
            return folder
        raise AitrainError(
            f"prepared data cannot be written to {folder} ({fault.strerror or fault}): free space there or use "
            "another cache folder"
        ) from None
    return folder


def _digest(path: Path) -> tuple[str, int]:
    """Return checksum and number of lines of a file."""
    digest, lines, last = hashlib.sha256(), 0, b"\n"
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            lines += block.count(b"\n")
            last = block[-1:]
    return digest.hexdigest(), lines + (last != b"\n")


def _key(path: Path, digest: str, data: Data, task: Task, tokenizer: Any) -> str:
    """Name everything that decides the token set; held-out samples and order are chosen later."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # State of the last call, not of the tokenizer.
    backend.pop("truncation", None)
    backend.pop("padding", None)
    content: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "file": [path.name, digest],
        "tokenizer": backend,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "sequence_tokens": data.sequence_tokens,
    }
    if isinstance(data, Text):
        content["text"] = data.text_field
    elif isinstance(data, Records) and isinstance(task, Sft):
        content["records"] = [data.format.name, data.no_trained_tokens.name, data.too_long.name]
        content["conversation"] = [tokenizer.chat_template, task.system_prompt]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@dataclass
class _Job:
    """The preparation of one file."""

    path: Path
    data: Data
    task: Task
    tokenizer: Any
    progress: Progress | None
    total: int | None
    unlearnable: Places = field(default_factory=Places)
    too_long: Places = field(default_factory=Places)

    def write(self, folder: Path) -> None:
        report = SourceReport(str(self.path.name))
        with TokenWriter(folder) as writer:
            if isinstance(self.data, Text):
                self._write_text(self.data, writer, report)
            elif isinstance(self.data, Records) and isinstance(self.task, Sft):
                self._write_records(self.data, self.task, writer, report)
            else:
                raise TypeError(f"no preparation for {type(self.data).__name__} with {type(self.task).__name__}")
        tokens = TokenSet.open(folder) if len(writer) else None
        if tokens is None or not tokens.trained_counts.any():
            reasons = ", ".join(f"{places.count} {reason}" for reason, places in report.dropped.items())
            raise DataError(
                f"{self.path.name}: no trained token in {report.records} records{f' ({reasons})' if reasons else ''}: "
                "there is nothing to learn from this file"
            )
        report.measure(tokens.lengths, tokens.trained_counts)
        report.save(folder / "report.json")

    def _batches(self, placed: Iterable[Placed]) -> Iterator[list[Placed]]:
        """Group records and tell how far it is, behind each group and at the end."""
        records, done = iter(placed), 0
        while batch := list(islice(records, _AT_ONCE)):
            yield batch
            done += len(batch)
            if self.progress:
                self.progress(done, self.total if self.total is None else max(self.total, done))
        if self.progress and done != self.total:
            self.progress(done, done)

    def _write_records(self, data: Records, task: Sft, writer: TokenWriter, report: SourceReport) -> None:
        template = ChatTemplate(self.tokenizer)
        for batch in self._batches(read_records(self.path)):
            talks = [(where, to_messages(record, data.format, where, task.system_prompt)) for where, record in batch]
            for (where, _), encoded in zip(talks, encode_conversations(self.tokenizer, template, talks), strict=True):
                self._take(data, encoded, where, writer, report)
        self._refuse(data, report)

    def _take(self, data: Records, encoded: Encoded, where: str, writer: TokenWriter, report: SourceReport) -> None:
        ids, trained = encoded.ids, encoded.trained
        report.see(len(ids), where)
        reason = "without a trained token"
        if any(trained) and len(ids) > data.sequence_tokens:
            if data.too_long is OnTooLong.refuse:
                self.too_long.add(f"{where} has {len(ids)} tokens")
                return
            if data.too_long is OnTooLong.drop:
                report.drop(f"longer than data.sequence_tokens={data.sequence_tokens}", where)
                return
            ids, trained = ids[: data.sequence_tokens], trained[: data.sequence_tokens]
            reason = f"without a trained token in the first {data.sequence_tokens}"
            if any(trained):
                report.truncated.add(where)
        if any(trained):
            writer.add(ids, trained)
        elif data.no_trained_tokens is OnFault.refuse:
            self.unlearnable.add(where)
        else:
            report.drop(reason, where)

    def _refuse(self, data: Records, report: SourceReport) -> None:
        """Raise for what the recipe does not accept, both kinds at once."""
        faults = []
        if self.too_long.count:
            faults.append(
                f"{self.too_long.count} of {report.records} samples are longer than "
                f"data.sequence_tokens={data.sequence_tokens} ({self.too_long}): write "
                f"data.sequence_tokens={report.longest_tokens}, data.too_long=truncate or data.too_long=drop"
            )
        if self.unlearnable.count:
            cut = " after truncation" if data.too_long is OnTooLong.truncate else ""
            faults.append(
                f"{self.unlearnable.count} of {report.records} samples have no trained token{cut}, because the "
                f"assistant says nothing in them ({self.unlearnable}): mend them, or write data.no_trained_tokens=drop"
            )
        if faults:
            raise DataError("\n".join(faults))

    def _write_text(self, data: Text, writer: TokenWriter, report: SourceReport) -> None:
        end = self.tokenizer.eos_token_id
        if end is None:
            raise ModelError(
                "the model's tokenizer has no end-of-text token (eos_token) to put between documents: "
                "add one to tokenizer_config.json in the model folder"
            )
        waiting: list[int] = []
        where = ""
        for batch in self._batches(read_records(self.path, data.text_field)):
            texts = [record[data.text_field] for _, record in batch]
            output = self.tokenizer(
                texts,
                add_special_tokens=False,
                padding=False,
                truncation=False,
                return_attention_mask=False,
                verbose=False,
            )
            for (where, _), ids in zip(batch, output["input_ids"], strict=True):
                report.see(len(ids), where)
                if not ids:
                    report.drop("empty documents", where)
                    continue
                waiting += [*ids, end]
                whole = len(waiting) // data.sequence_tokens * data.sequence_tokens
                for begin in range(0, whole, data.sequence_tokens):
                    writer.add(waiting[begin : begin + data.sequence_tokens], [True] * data.sequence_tokens)
                waiting = waiting[whole:]
        if len(waiting) > 1:
            writer.add(waiting, [True] * len(waiting))
        elif waiting:
            report.drop("last block of a single token, which predicts nothing", where)


def sample_text(tokenizer: Any, tokens: Iterable[int], trained: Iterable[bool], coloured: bool = True) -> str:
    """Write a sample for people: trained tokens in bold green, the rest dim; or between [[ and ]] without colours.

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
