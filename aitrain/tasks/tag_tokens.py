"""Token classification: a label per word, evaluated on complete entities."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from aitrain.config import RunConfig
from aitrain.config.data import Tagged
from aitrain.data.columns import Columns, ColumnWriter
from aitrain.data.samples import Batch, Integers, Samples, Splits
from aitrain.data.source import Source
from aitrain.data.spans import OUTSIDE, TaggedText, read_tagged, spans_in
from aitrain.data.splits import split
from aitrain.data.text_account import TextAccount
from aitrain.dist.group import Group
from aitrain.models.load import Located
from aitrain.tasks.data_files import source_to_predict
from aitrain.tasks.metric import Metric
from aitrain.tasks.task import Measured, Watch, unwatched
from aitrain.tasks.text_encoder import TextEncoder

VERSION = 1
"""Raised whenever the same input would be prepared differently."""

IGNORED = -100
"""Label of a token that is not the first of a word."""


@dataclass(frozen=True)
class TaggedSamples:
    """Token sequences with a label at the first token of each word; see `Samples`."""

    task: TagTokens
    columns: Columns

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def weights(self) -> Integers:
        """Words of each text, `(N,)`."""
        return np.array([int((self.columns.get("labels", at) != IGNORED).sum()) for at in range(len(self))])

    @property
    def units(self) -> Integers:
        """Tokens of each text, `(N,)`."""
        return self.columns.lengths("ids")

    def collate(self, rows: Integers, size: int) -> Batch:
        """Collate texts into one padded batch.

        Args:
            rows: Numbers of the texts.
            size: Rows of the batch.

        Returns:
            What `TextEncoder.padded` makes, and `labels`, int64 `(size, L)`, -100 where there is no word.
        """
        batch = self.task.padded([self.columns.get("ids", int(row)) for row in rows], size)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for at, row in enumerate(rows):
            found = self.columns.get("labels", int(row))
            labels[at, : len(found)] = torch.from_numpy(np.array(found, dtype=np.int64))
        return batch | {"labels": labels}


class TagTokens(TextEncoder):
    """A tagger of words; see `Task`."""

    primary = Metric("span_f1", greater_is_better=True)
    weight_unit = "words"
    auto, adapter_kind, use = "AutoModelForTokenClassification", "TOKEN_CLS", "token-classification"

    def __init__(self, config: RunConfig, accelerator: str = "cpu", located: Located | None = None) -> None:
        super().__init__(config, accelerator, located)
        assert isinstance(config.data, Tagged), "the recipe was checked"
        self.data = config.data
        self.labels: list[str] = []
        self._known: list[str] | None = None
        self._examples: list[list[int]] = []

    @property
    def kinds(self) -> list[str]:
        """Kinds of entities, in their order."""
        return sorted({label[2:] for label in self.labels if label != OUTSIDE})

    def settings(self) -> dict[str, Any]:
        """Return number and names of the labels."""
        labels = self.labels or [OUTSIDE, "B-X"]  # only to look whether the model can be built
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {name: number for number, name in enumerate(labels)},
        }

    def learned(self) -> dict[str, Any]:
        """Return the labels in their order."""
        return {"labels": self.labels}

    def recall(self, values: Mapping[str, Any]) -> None:
        """Restore what `learned` returned.

        Args:
            values: From a checkpoint.
        """
        self.labels = list(values["labels"])
        self._known = self.kinds  # other data is measured by these

    def samples(self, group: Group, watch: Watch = unwatched) -> Splits:
        """Read, check and tokenise the texts; see `Task.samples`.

        Args:
            group: The ranks.
            watch: Called between the files.
        """
        data = self.data
        fields = [data.text_field, data.entities_field, data.words_field, data.labels_field]
        content = {"version": VERSION, "fields": fields, "kinds": self._known}
        folders = self.prepared(group, content, lambda source, first, to: self._write(source, first, to, watch))
        accounts = [TextAccount.load(folder) for folder in folders]
        train, validation = Columns.open(folders[0]), Columns.open(folders[-1]) if len(folders) > 1 else None
        self.labels = [OUTSIDE, *(f"{begin}-{kind}" for kind in accounts[0].classes for begin in "BI")]
        marked = [bool((train.get("labels", at) > 0).any()) for at in range(len(train))]
        train, validation, same = split(train, validation, ["ids"], data, self.config.seed, marked)
        shown = train if validation is None else validation
        self._examples = [shown.get("ids", at).tolist() for at in range(min(3, len(shown)))]
        account = accounts[0].split(accounts, len(train), 0 if validation is None else len(validation), same)
        held = None if validation is None else TaggedSamples(self, validation)
        return Splits(TaggedSamples(self, train), held, account, account.fingerprint())

    def _write(self, source: Source, training: Source, folder: Path, watch: Watch) -> None:
        first = read_tagged(training, self.data, known=self._known)
        kinds = self._known or sorted({label[2:] for one in first for label in one.labels if label != OUTSIDE})
        found = first if source == training else read_tagged(source, self.data, known=kinds)
        labels = [OUTSIDE, *(f"{begin}-{kind}" for kind in kinds for begin in "BI")]
        watch()
        account = TextAccount(source.name, source.digest(), len(found), classes=kinds)
        account.counts = dict(Counter(kind for one in found for *_, kind in spans_in(one.labels)))
        with ColumnWriter(folder, {"ids": np.int32, "labels": np.int32}) as writer:
            for one, (ids, firsts) in zip(found, self._aligned(found), strict=True):
                marks = np.full(len(ids), IGNORED, dtype=np.int32)
                for word, token in enumerate(firsts):
                    if token is not None:
                        marks[token] = labels.index(one.labels[word])
                if None in firsts:
                    account.cut.add(one.where)
                writer.add(ids=ids, labels=marks)
                account.texts += 1
                account.tokens += len(ids)
        account.save(folder)

    def shown_sample(self, samples: Samples, index: int) -> str:
        """Return a text with its entities between [[ and ]].

        Args:
            samples: From `samples`.
            index: Number of the text.
        """
        assert isinstance(samples, TaggedSamples), "samples of this task"
        parts: list[tuple[str, list[int]]] = []
        columns = samples.columns
        for token, label in zip(columns.get("ids", index).tolist(), columns.get("labels", index).tolist(), strict=True):
            name = None if label == IGNORED else self.labels[label]  # None: goes on with a word
            if token in self.tokenizer.all_special_ids:
                name = OUTSIDE
            if not parts or (name is not None and not (name.startswith("I-") and parts[-1][0] == name[2:])):
                parts.append(("" if name in (None, OUTSIDE) else str(name)[2:], []))
            parts[-1][1].append(token)
        texts = ((kind, str(self.tokenizer.decode(tokens))) for kind, tokens in parts)
        return f"sample {index}\n" + " ".join(f"[[{text} | {kind}]]" if kind else text for kind, text in texts)

    def _aligned(self, texts: Sequence[TaggedText]) -> Iterator[tuple[list[int], list[int | None]]]:
        """Yield token ids of each text, and the first token of each of its words; None for one that is cut off."""
        found = self.tokenizer(
            [one.text for one in texts],
            truncation=True,
            max_length=self.sequence_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for one, ids, offsets in zip(texts, found["input_ids"], found["offset_mapping"], strict=True):
            firsts: list[int | None] = []
            token = 0
            for start, end in one.words:
                while token < len(ids) and offsets[token][1] <= start:
                    token += 1
                inside = token < len(ids) and offsets[token][0] < end
                firsts.append(token if inside else None)
                token += inside
            yield ids, firsts

    def baselines(self, splits: Splits) -> dict[str, dict[str, float]]:
        """Return the metrics of labelling each word with its most common label in the training data.

        Args:
            splits: The samples.
        """
        if splits.validation is None:
            return {}
        seen: dict[int, Counter[int]] = defaultdict(Counter)
        assert isinstance(splits.train, TaggedSamples) and isinstance(splits.validation, TaggedSamples), "of this task"
        for ids, labels in _pairs(splits.train.columns):
            for token, label in zip(ids, labels, strict=True):
                seen[token][label] += 1
        sums = np.zeros((len(self.kinds), 3))
        for ids, labels in _pairs(splits.validation.columns):
            guesses = [seen[token].most_common(1)[0][0] if token in seen else 0 for token in ids]
            sums += self._counted(guesses, labels)
        return {"a list of the words of the training data": _of_counts(sums)}

    def _counted(self, guesses: Sequence[int], right: Sequence[int]) -> np.ndarray[Any, Any]:
        """Return found, wrongly found and missed entities of each kind in one text, `(kinds, 3)`."""
        kinds = self.kinds
        said, true = (set(spans_in([self.labels[number] for number in row])) for row in (guesses, right))
        counts = np.zeros((len(kinds), 3))
        for column, spans in enumerate((said & true, said - true, true - said)):
            for *_, kind in spans:
                counts[kinds.index(kind), column] += 1
        return counts

    def _logits(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the sum of the cross entropies over the words.

        Args:
            model: The model.
            batch: From `TaggedSamples.collate`.
        """
        logits = self._logits(model, batch).float()
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum")

    def measure(self, model: nn.Module, batch: Mapping[str, Any]) -> Measured:
        """Measure one batch.

        Args:
            model: The model.
            batch: From `TaggedSamples.collate`.

        Returns:
            Sums of losses and words, then entities found, wrongly found and missed, of each kind.
        """
        logits, labels = self._logits(model, batch).float(), batch["labels"]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        counts = np.zeros((len(self.kinds), 3))
        for guesses, right in zip(logits.argmax(2).tolist(), labels.tolist(), strict=True):
            pairs = [(guess, label) for guess, label in zip(guesses, right, strict=True) if label != IGNORED]
            counts += self._counted([guess for guess, _ in pairs], [label for _, label in pairs])
        words = (labels != IGNORED).sum()
        sums = torch.stack([loss.double(), words.double()])
        return Measured(torch.cat([sums, torch.from_numpy(counts.flatten()).to(sums.device)]))

    def metrics(self, found: Measured) -> dict[str, float]:
        """Return loss, and precision, recall and F1 of whole entities, with exact boundaries.

        Args:
            found: Sums over all texts.
        """
        counts = found.sums[2:].cpu().numpy().reshape(len(self.kinds), 3)
        return super().metrics(found) | _of_counts(counts)

    def picture(self, found: Measured, file: Path) -> bool:
        """Draw how well each kind of entity is found.

        Args:
            found: Sums over all texts.
            file: Picture to write.
        """
        from aitrain.tasks.pictures import bars

        counts = found.sums[2:].cpu().numpy().reshape(len(self.kinds), 3)
        values = [_of_counts(row[None])["span_f1"] for row in counts]
        names = [f"{kind} ({int(row[0] + row[2])})" for kind, row in zip(self.kinds, counts, strict=True)]
        bars(names, values, "F1 per kind of entity (number of entities)", file)
        return True

    def answers(self, model: nn.Module, device: torch.device, stop: Callable[[], bool]) -> list[dict[str, str]]:
        """Let the model mark three held-out texts.

        Args:
            model: The model.
            device: Where it is.
            stop: Whether to end early.
        """
        if not self._examples:
            return []
        texts = [str(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in self._examples]
        found = []
        for said in self._marked([read_plain(text) for text in texts], model, device):
            shown = ", ".join(f"{each['text']} ({each['label']})" for each in said["entities"])
            text = said["text"] if len(said["text"]) < 100 else said["text"][:97] + "..."
            found.append({"prompt": text, "answer": shown or "nothing"})
        return found

    def predictions(self, model: nn.Module, path: Path, device: torch.device) -> Iterator[dict[str, Any]]:
        """Yield the entities of each text of a file, and the text with their kinds in place of their words.

        Args:
            model: From `trained_model`.
            path: A file of records with a text or words.
            device: Where the model is.
        """
        texts = read_tagged(source_to_predict(path, self.data), self.data, with_labels=False)
        for first in range(0, len(texts), 32):
            yield from self._marked(texts[first : first + 32], model, device)

    def _marked(self, texts: Sequence[TaggedText], model: nn.Module, device: torch.device) -> Iterator[dict[str, Any]]:
        aligned = list(self._aligned(texts))
        batch = {key: value.to(device) for key, value in self.padded([ids for ids, _ in aligned], len(texts)).items()}
        guesses = self._logits(model, batch).argmax(2).tolist()
        for one, (_, firsts), row in zip(texts, aligned, guesses, strict=True):
            labels = [OUTSIDE if token is None else self.labels[row[token]] for token in firsts]
            entities, hidden, at = [], "", 0
            for first, behind, kind in spans_in(labels):
                start, end = one.words[first][0], one.words[behind - 1][1]
                entities.append({"start": start, "end": end, "label": kind, "text": one.text[start:end]})
                hidden += f"{one.text[at:start]}[{kind}]"
                at = end
            yield {"text": one.text, "entities": entities, "pseudonymised": hidden + one.text[at:]}


def read_plain(text: str) -> TaggedText:
    """Cut a text into words without labels.

    Args:
        text: The text.
    """
    from aitrain.data.spans import with_spans

    return with_spans(text, [], "")


def _pairs(columns: Columns) -> Iterator[tuple[list[int], list[int]]]:
    """Yield, for each text, the first token of each word and its label."""
    for at in range(len(columns)):
        labels = columns.get("labels", at)
        words = labels != IGNORED
        yield columns.get("ids", at)[words].tolist(), labels[words].tolist()


def _of_counts(counts: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return precision, recall and F1 over all kinds, and the mean of the kinds' F1."""
    found, wrong, missed = counts.sum(0)
    each = [2 * row[0] / max(1, 2 * row[0] + row[1] + row[2]) for row in counts]
    return {
        "span_f1": float(2 * found / max(1, 2 * found + wrong + missed)),
        "span_precision": float(found / max(1, found + wrong)),
        "span_recall": float(found / max(1, found + missed)),
        "span_f1_macro": float(np.mean(each)) if len(each) else 0.0,
    }
