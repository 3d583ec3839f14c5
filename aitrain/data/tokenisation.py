"""Converts a data file to a token set: read, converted, masked and tokenised in a stream, every record accounted
for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from aitrain.config.custom import UserClass
from aitrain.config.data import OnFault, OnOmission, OnTooLong, Records, Sequences, Text
from aitrain.config.task import Sft, Task
from aitrain.data.chat_template import ChatTemplate, Rendered
from aitrain.data.conversation import to_conversation
from aitrain.data.faults import RecordFaults
from aitrain.data.fields import is_given
from aitrain.data.masking import Encoded, encode
from aitrain.data.own_records import own_records
from aitrain.data.records import Placed, read_records
from aitrain.data.report import Places, SourceReport
from aitrain.data.source import Source
from aitrain.data.token_set import DIGEST_BYTES, TokenSet, TokenWriter
from aitrain.dist import heartbeat
from aitrain.errors import DataError, ModelError

_AT_ONCE = 256
"""Records tokenised together: enough for a fast tokenizer to use all cores, little enough for memory."""

DOCUMENTS = "documents.bin"
"""File with a checksum of every document of plain text, which cannot be recovered from the blocks."""

Progress = Callable[[int, int | None], None]
"""Called with records done and in all, None if that is not known beforehand; at the end the two are equal."""


@dataclass
class Tokenisation:
    """The preparation of one source.

    Attributes:
        source: The files.
        sha256: Their checksum, for the account.
        data: `Records` or `Text`.
        task: `Sft` needs records, `Pretrain` needs text.
        tokenizer: A fast transformers tokenizer.
        progress: Called with the progress.
        total: Records in the file, or None if that is not known beforehand.
        faults: Records that cannot be used.
        broken: Why the file cannot be read to its end.
        unlearnable: Records without a trained token, where the recipe does not accept them.
        too_long: Records that are too long, where the recipe does not accept them.
        far_too_long: Whether one of them was so long that its tokens were not counted.
    """

    source: Source
    sha256: str
    data: Sequences
    task: Task
    tokenizer: Any
    progress: Progress | None
    total: int | None
    faults: RecordFaults = field(default_factory=RecordFaults)
    broken: list[str] = field(default_factory=list)
    unlearnable: Places = field(default_factory=Places)
    too_long: Places = field(default_factory=Places)
    far_too_long: bool = False

    def write(self, folder: Path) -> None:
        """Read, mask and tokenise the file into a token set with its account.

        Args:
            folder: An empty folder, which gets the arrays and `report.json`.

        Raises:
            DataError: Records are refused, all of them named, or there is nothing to learn.
            ModelError: The tokenizer has no token to put between documents.
        """
        report = SourceReport(self.source.name, self.sha256)
        with TokenWriter(folder) as writer:
            if isinstance(self.data, Text):
                self._write_text(self.data, writer, report, folder)
            elif isinstance(self.data, Records) and isinstance(self.task, Sft):
                self._write_records(self.data, self.task, writer, report)
            else:
                raise TypeError(f"no preparation for {type(self.data).__name__} with {type(self.task).__name__}")
        tokens = TokenSet.open(folder) if len(writer) else None
        if tokens is None or not tokens.trained_counts.any():
            reasons = ", ".join(f"{places.count} {reason}" for reason, places in report.dropped.items())
            why = f" ({reasons})" if reasons else ""
            raise DataError(
                f"{self.source.name}: no trained tokens in {report.records} records{why}: there is nothing to learn "
                "from this file"
            )
        report.measure(tokens.lengths, tokens.trained_counts)
        report.save(folder / "report.json")

    def _batches(self, placed: Iterable[Placed]) -> Iterator[list[Placed]]:
        """Group records and report progress after each group and at the end."""
        records, done = iter(placed), 0
        while batch := list(islice(records, _AT_ONCE)):
            yield batch
            done += len(batch)
            if self.progress:
                self.progress(done, self.total if self.total is None else max(self.total, done))
        if self.progress and done != self.total:
            self.progress(done, done)

    def _records(self, text_field: str | None = None) -> Iterator[Placed]:
        """Read the file; faults of the file are reported after faults of its records."""
        try:
            if isinstance(self.data, UserClass):
                yield from own_records(self.data, self.source.path, text_field)
            else:
                yield from read_records(self.source, text_field)
        except DataError as fault:
            self.broken.append(str(fault))

    def _write_records(self, data: Records, task: Sft, writer: TokenWriter, report: SourceReport) -> None:
        template = ChatTemplate(self.tokenizer)
        longest = longest_token(self.tokenizer)
        # what has more characters than so many tokens can have is too long: it is not tokenised to find that out
        most = None if longest is None else data.sequence_tokens * longest
        for batch in self._batches(self._records()):
            heartbeat.beat("preparing data")
            rendered: list[tuple[str, Rendered]] = []
            for where, record in batch:
                try:
                    if isinstance(record, DataError):
                        raise record
                    one = self._render(data, task, template, record, where, report)
                except DataError as fault:
                    self.faults.add(fault)
                    continue
                if most and longest and one.spans and len(one.text) > most and data.too_long is not OnTooLong.truncate:
                    self._too_long(data, len(one.text) // longest, where, report, at_least=True)
                else:
                    rendered.append((where, one))
            for (where, one), encoded in zip(rendered, encode(self.tokenizer, rendered, most), strict=True):
                if isinstance(encoded, DataError):
                    self.faults.add(encoded)
                else:
                    self._take(data, encoded, where, writer, report, bool(one.spans))
        self._refuse(data, report)

    def _render(
        self,
        data: Records,
        task: Sft,
        template: ChatTemplate,
        record: dict[str, Any],
        where: str,
        report: SourceReport,
    ) -> Rendered:
        """Render one record with the chat template, and count its unused parts."""
        conversation = to_conversation(record, data.format, where, task.system_prompt, data.ignore_fields)
        one = template.render(conversation, where)
        if one.left_out and data.template_omissions is OnOmission.refuse:
            raise DataError(
                f"{where}: the model's chat template leaves out {', '.join(one.left_out)}: "
                "write model.chat_template=FILE with a template that keeps it, or data.template_omissions=accept to "
                "train without it"
            )
        if one.left_out:
            report.left_out.add(where)
        for name in dict.fromkeys([*conversation.unused, *one.unused]):
            report.unused.setdefault(name, Places()).add(where)
        return one

    def _take(
        self, data: Records, encoded: Encoded, where: str, writer: TokenWriter, report: SourceReport, has_turns: bool
    ) -> None:
        ids, trained = encoded.ids, encoded.trained
        if has_turns and len(ids) > data.sequence_tokens and data.too_long is not OnTooLong.truncate:
            self._too_long(data, len(ids), where, report)
            return
        report.see(len(ids), where)
        reason = "without a trained token"
        if has_turns and len(ids) > data.sequence_tokens:
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

    def _too_long(self, data: Records, tokens: int, where: str, report: SourceReport, at_least: bool = False) -> None:
        report.see(tokens, where)
        self.far_too_long |= at_least
        if data.too_long is OnTooLong.refuse:
            self.too_long.add(f"{where} has {'at least ' if at_least else ''}{tokens} tokens")
        else:
            report.drop(f"longer than data.sequence_tokens={data.sequence_tokens}", where)

    def _refuse(self, data: Records, report: SourceReport) -> None:
        """Raise for faulty records and for what the recipe does not accept, all kinds together."""
        faults = []
        # of what was not tokenised the length is not known
        longer = "" if self.far_too_long else f"data.sequence_tokens={report.longest_tokens}, "
        if self.too_long.count:
            faults.append(
                f"{self.too_long.count} of {report.records} samples are longer than "
                f"data.sequence_tokens={data.sequence_tokens} ({self.too_long}): write {longer}"
                f"data.too_long=truncate or data.too_long=drop"
            )
        if self.unlearnable.count:
            cut = " after truncation" if data.too_long is OnTooLong.truncate else ""
            faults.append(
                f"{self.unlearnable.count} of {report.records} samples have no trained tokens{cut}, because they hold "
                f"no answer of the assistant ({self.unlearnable}): fix them, or write data.no_trained_tokens=drop"
            )
        self.faults.refuse(*faults, *self.broken)

    def _write_text(self, data: Text, writer: TokenWriter, report: SourceReport, folder: Path) -> None:
        end = self.tokenizer.eos_token_id
        if end is None:
            raise ModelError(
                "the model's tokenizer has no end-of-text token (eos_token) to put between documents: "
                "add one to tokenizer_config.json in the model folder"
            )
        waiting: list[int] = []
        documents: list[bytes] = []
        where = ""
        for batch in self._batches(self._records(data.text_field)):
            heartbeat.beat("preparing data")
            for _, record in batch:
                if isinstance(record, DataError):
                    self.faults.add(record)
            good = [(where, record) for where, record in batch if not isinstance(record, DataError)]
            for where, record in good:
                for name in record:
                    if name != data.text_field and is_given(record[name]):
                        report.unused.setdefault(name, Places()).add(where)
            if not good:
                continue
            texts = [record[data.text_field] for _, record in good]
            output = self.tokenizer(
                texts,
                add_special_tokens=False,
                padding=False,
                truncation=False,
                return_attention_mask=False,
                verbose=False,
            )
            for (where, _), ids in zip(good, output["input_ids"], strict=True):
                report.see(len(ids), where)
                if not ids:
                    report.drop("empty documents", where)
                    continue
                documents.append(hashlib.blake2b(repr(ids).encode(), digest_size=DIGEST_BYTES).digest())
                waiting += [*ids, end]
                whole = len(waiting) // data.sequence_tokens * data.sequence_tokens
                for begin in range(0, whole, data.sequence_tokens):
                    writer.add(waiting[begin : begin + data.sequence_tokens], [True] * data.sequence_tokens)
                waiting = waiting[whole:]
        self.faults.refuse(*self.broken)
        (folder / DOCUMENTS).write_bytes(b"".join(documents))
        if len(waiting) > 1:
            writer.add(waiting, [True] * len(waiting))
        elif waiting:
            report.drop("last block of a single token, which predicts nothing", where)


def longest_token(tokenizer: Any) -> int | None:
    """Return the most characters that one token of a tokenizer stands for; None if there is no such bound.

    Args:
        tokenizer: A fast transformers tokenizer.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    kind, falls_back = model.get("type"), bool(model.get("byte_fallback"))
    whole = kind == "BPE" and (model.get("unk_token") is None or falls_back or not model.get("fuse_unk"))
    if not whole and not (kind == "Unigram" and falls_back):
        return None  # a token for unknown words stands for words of any length
    # byte-level vocabularies write a byte as one character, so a token never stands for more characters than it has
    return max(map(len, tokenizer.get_vocab()), default=1)
