"""Text embeddings for search: each question is trained to be closest to its own text in the global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from aitrain.config import RunConfig
from aitrain.config.data import Pairs
from aitrain.config.task import Embeddings as Config
from aitrain.config.task import Pooling
from aitrain.data.columns import Columns, ColumnWriter
from aitrain.data.pairs import nearest_by_words, read_pairs, text_mark
from aitrain.data.records import read_records
from aitrain.data.samples import Batch, Integers, Samples, Splits
from aitrain.data.source import Source
from aitrain.data.splits import split
from aitrain.data.text_account import TextAccount
from aitrain.dist.group import Group
from aitrain.errors import DataError, RecipeError
from aitrain.models.load import Located
from aitrain.tasks.data_files import source_to_predict
from aitrain.tasks.gathering import GatheringTask
from aitrain.tasks.metric import Metric
from aitrain.tasks.retrieval_metrics import ranks_of, search_metrics
from aitrain.tasks.task import ExportJob, Measured, Watch, unwatched
from aitrain.tasks.text_encoder import TextEncoder

VERSION = 1
"""Raised whenever the same input would be prepared differently."""

# Shapes: M = pairs of a micro-batch, G = pairs of the global batch, T = texts of a pair (question, answer, negatives),
# D = width of a vector.


@dataclass(frozen=True)
class PairSamples:
    """Token sequences of questions and texts; see `Samples`."""

    task: Embeddings
    columns: Columns

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def weights(self) -> Integers:
        """One per pair, `(N,)`."""
        return np.ones(len(self), dtype=np.int64)

    @property
    def units(self) -> Integers:
        """Tokens of each pair, `(N,)`."""
        return self.columns.lengths("ids")

    def texts(self, index: int) -> list[npt.NDArray[Any]]:
        """Return the token ids of a question, its text, and its hard negatives.

        Args:
            index: Number of the pair.
        """
        ends = np.cumsum(self.columns.get("lengths", index))
        return np.split(self.columns.get("ids", index), ends[:-1])

    def collate(self, rows: Integers, size: int) -> Batch:
        """Collate pairs into one padded batch.

        Args:
            rows: Numbers of the pairs.
            size: M, pairs of the batch.

        Returns:
            What `TextEncoder.padded` makes of the `(M T)` texts, pair by pair; `marks`, int64 `(M, T)`: equal numbers
            for equal texts, -1 where there is none.
        """
        count = 2 + self.task.negatives
        marks = torch.full((size, count), -1, dtype=torch.int64)
        texts: list[Any] = []
        for at, row in enumerate(rows):
            found = self.texts(int(row))[:count]
            texts += [*found, *[found[0][:1]] * (count - len(found))]
            known = np.array(self.columns.get("marks", int(row))[: len(found)], dtype=np.int64)
            marks[at, : len(found)] = torch.from_numpy(known)
        batch = self.task.padded(texts, size * count)
        return {key: batch[key] for key in ("input_ids", "attention_mask")} | {"marks": marks}


class Embeddings(TextEncoder, GatheringTask):
    """A sentence encoder; see `Task`."""

    primary = Metric("ndcg_at_10", greater_is_better=True)
    weight_unit = "pairs"
    auto, adapter_kind, use = "AutoModel", "FEATURE_EXTRACTION", "sentence-similarity"

    def __init__(self, config: RunConfig, accelerator: str = "cpu", located: Located | None = None) -> None:
        super().__init__(config, accelerator, located)
        assert isinstance(config.task, Config) and isinstance(config.data, Pairs), "the recipe was checked"
        self.keys, self.data = config.task, config.data
        self.negatives = config.task.negatives
        self.texts_per_sample = 2 + self.negatives
        self._examples: list[list[npt.NDArray[Any]]] = []
        width = self.located.facts.hidden_size
        if width is not None and any(length > width for length in self.keys.matryoshka):
            raise RecipeError(f"task.matryoshka={self.keys.matryoshka}: the model's vectors have {width} dimensions")

    def build(self) -> nn.Module:
        """Load the model; a pooling layer of its own, which is not used, is not trained."""
        model = super().build()
        for name, weight in model.named_parameters():
            if "pooler" in name.split("."):
                weight.requires_grad_(False)
        return model

    def samples(self, group: Group, watch: Watch = unwatched) -> Splits:
        """Read, check and tokenise the pairs; see `Task.samples`.

        Args:
            group: The ranks.
            watch: Called between the files.
        """
        data, keys = self.data, self.keys
        fields = [data.query_field, data.positive_field, data.negatives_field]
        content = {"version": VERSION, "fields": fields, "prefixes": [keys.query_prefix, keys.passage_prefix]}
        folders = self.prepared(group, content, lambda source, first, to: self._write(source, to, watch))
        accounts = [TextAccount.load(folder) for folder in folders]
        train, validation = Columns.open(folders[0]), Columns.open(folders[-1]) if len(folders) > 1 else None
        train, validation, same = split(train, validation, ["ids", "lengths"], data, self.config.seed)
        shown = PairSamples(self, train if validation is None else validation)
        self._examples = [shown.texts(at)[:2] for at in range(min(32, len(shown)))]
        account = accounts[0].split(accounts, len(train), 0 if validation is None else len(validation), same)
        held = None if validation is None else PairSamples(self, validation)
        return Splits(PairSamples(self, train), held, account, account.fingerprint())

    def _write(self, source: Source, folder: Path, watch: Watch) -> None:
        found = read_pairs(source, self.data)
        watch()
        account = TextAccount(source.name, source.digest(), len(found.queries))
        with ColumnWriter(folder, {"ids": np.int32, "lengths": np.int32, "marks": np.int64}) as writer:
            for query, positive, negatives, where in zip(
                found.queries, found.positives, found.negatives, found.places, strict=True
            ):
                texts = [positive, *negatives]
                given = [
                    f"{self.keys.query_prefix or ''}{query}",
                    *(f"{self.keys.passage_prefix or ''}{text}" for text in texts),
                ]
                tokens = self.tokenise(given)
                if any(len(ids) == self.sequence_tokens for ids in tokens):
                    account.cut.add(where)
                marks = [text_mark(query), *map(text_mark, texts)]
                writer.add(ids=np.concatenate(tokens), lengths=[len(ids) for ids in tokens], marks=marks)
                account.texts += 1
                account.tokens += sum(map(len, tokens))
        account.save(folder)

    def vectors(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return one vector of length 1 per text, float32 `(rows, D)`.

        Args:
            model: The model.
            batch: `input_ids` and `attention_mask`, `(rows, L)`.
        """
        mask = batch["attention_mask"]
        hidden = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state.float()
        if self.keys.pooling is Pooling.cls:
            pooled = hidden[:, 0]
        elif self.keys.pooling is Pooling.last:
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
        else:
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(pooled, dim=1)

    def outputs(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the vectors of each pair's texts, `(M, T, D)`.

        Args:
            model: The model.
            batch: From `PairSamples.collate`.
        """
        return self.vectors(model, batch).unflatten(0, batch["marks"].shape)

    def marks(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return hashes to find equal texts, `(M, T)`; -1 where there is none.

        Args:
            batch: From `PairSamples.collate`.
        """
        found: torch.Tensor = batch["marks"]
        return found

    def gathered_loss(self, outputs: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
        """Return the sum over the pairs of the cross entropy of each question's own text among all texts.

        A text that is the same as a question's own one is not a negative of it. With `matryoshka`, the losses at all
        lengths are averaged.

        Args:
            outputs: Vectors of all pairs, `(G, T, D)`.
            marks: Of the same texts, `(G, T)`.

        Source: van den Oord et al. 2018, equation 4; Kusupati et al., arXiv:2205.13147, equation 1.
        """
        real = marks[:, 0] >= 0
        width = outputs.shape[2]
        lengths = [width, *(length for length in self.keys.matryoshka if length < width)]
        return torch.stack([self._contrast(outputs[real, :, :length], marks[real]) for length in lengths]).mean(0)

    def _contrast(self, vectors: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
        vectors = F.normalize(vectors, dim=2)
        queries, own = vectors[:, 0], torch.arange(len(vectors), device=vectors.device)
        keys, names = vectors[:, 1:].transpose(0, 1).flatten(0, 1), marks[:, 1:].T.flatten()
        scores = queries @ keys.T / self.keys.temperature
        other = torch.arange(len(keys), device=keys.device)[None] != own[:, None]
        scores = scores.masked_fill((names[None] == marks[:, 1:2]) & other | (names < 0)[None], float("-inf"))
        loss = F.cross_entropy(scores, own, reduction="sum")
        if not self.keys.symmetric:
            return loss
        back = vectors[:, 1] @ queries.T / self.keys.temperature
        same = (marks[None, :, 0] == marks[:, :1]) & (own[None] != own[:, None])
        return (loss + F.cross_entropy(back.masked_fill(same, float("-inf")), own, reduction="sum")) / 2

    def measure(self, model: nn.Module, batch: Mapping[str, Any]) -> Measured:
        """Measure one batch.

        Args:
            model: The model.
            batch: From `PairSamples.collate`.

        Returns:
            Sums of 0 and of pairs, because the loss is one of all pairs together; each pair's vectors and marks.
        """
        vectors, marks = self.outputs(model, batch), batch["marks"]
        # a mark has 62 bits, a float holds 21 of them
        bits = torch.stack([marks >> 42, marks >> 21 & 0x1FFFFF, marks & 0x1FFFFF], 2).float()
        sums = torch.stack([torch.zeros_like(bits[0, 0, 0]), (marks[:, 0] >= 0).sum()]).double()
        return Measured(sums, torch.cat([vectors, bits], 2))

    def metrics(self, found: Measured) -> dict[str, float]:
        """Return the loss over all held-out pairs together, and how well each question finds its text among all texts.

        Args:
            found: Vectors and marks of all pairs.
        """
        assert found.rows is not None, "`measure` gives rows"
        vectors, bits = found.rows[..., :-3], found.rows[..., -3:].long()
        marks = torch.where(bits[..., 0] < 0, -1, bits[..., 0] << 42 | bits[..., 1] << 21 | bits[..., 2])
        loss = float(self.gathered_loss(vectors.double(), marks)) / len(vectors)
        texts, right = _pool(marks)
        scores = vectors[:, 0].double() @ vectors.flatten(0, 1)[texts].double().T
        return {"loss": loss} | search_metrics(ranks_of(scores, right))

    def baselines(self, splits: Splits) -> dict[str, dict[str, float]]:
        """Return the metrics of counting common words.

        Args:
            splits: The samples.
        """
        held = splits.validation
        if held is None:
            return {}
        assert isinstance(held, PairSamples), "samples of this task"
        marks = held.collate(np.arange(len(held)), len(held))["marks"]
        every = [each for at in range(len(held)) for each in self._filled(held.texts(at))]
        texts, right = _pool(marks)
        queries = [every[at * marks.shape[1]] for at in range(len(held))]
        scores = nearest_by_words(queries, [every[int(text)] for text in texts])
        return {"words in common (TF-IDF)": search_metrics(ranks_of(torch.from_numpy(scores), right))}

    def _filled(self, texts: Sequence[Any]) -> list[Any]:
        count = 2 + self.negatives
        return [*texts[:count], *[texts[0]] * (count - len(texts))]

    def answers(self, model: nn.Module, device: torch.device, stop: Callable[[], bool]) -> list[dict[str, str]]:
        """Return the nearest of up to 32 texts for three held-out questions.

        Args:
            model: The model.
            device: Where it is.
            stop: Whether to end early.
        """
        if len(self._examples) < 2:
            return []
        every = [ids for pair in self._examples for ids in pair]
        batch = {key: value.to(device) for key, value in self.padded(every, len(every)).items()}
        vectors = self.vectors(model, batch).unflatten(0, (len(self._examples), 2))
        found = []
        for at in range(min(3, len(self._examples))):
            best = int((vectors[:, 1] @ vectors[at, 0]).argmax())
            shown = [
                str(self.tokenizer.decode(ids, skip_special_tokens=True))
                for ids in (self._examples[at][0], self._examples[best][1])
            ]
            query, text = (each if len(each) < 100 else each[:97] + "..." for each in shown)
            found.append({"prompt": query, "answer": f"{text} ({'right' if best == at else 'not its own'})"})
        return found

    def predictions(self, model: nn.Module, path: Path, device: torch.device) -> Iterator[dict[str, Any]]:
        """Yield the vector of each text of a file.

        Args:
            model: From `trained_model`.
            path: A file of records with a question or a `text`.
            device: Where the model is.

        Raises:
            DataError: A record has neither.
        """
        for where, record in read_records(source_to_predict(path, self.data)):
            if isinstance(record, DataError):
                raise record
            name = next((key for key in (self.data.query_field, "text") if isinstance(record.get(key), str)), None)
            if name is None:
                column = self.data.columns.get(self.data.query_field, self.data.query_field)
                raise DataError(f"{where}: neither {column!r} nor 'text' with a text")
            prefix = self.keys.passage_prefix if name == "text" else self.keys.query_prefix
            batch = self.padded(self.tokenise([f"{prefix or ''}{record[name]}"]), 1)
            given = {key: value.to(device) for key, value in batch.items()}
            vector = self.vectors(model, given)[0].cpu()
            yield {name: record[name], "embedding": [round(float(value), 7) for value in vector]}

    def shown_sample(self, samples: Samples, index: int) -> str:
        """Return a question with its text and its hard negatives.

        Args:
            samples: From `samples`.
            index: Number of the pair.
        """
        assert isinstance(samples, PairSamples), "samples of this task"
        question, right, *wrong = (self.tokenizer.decode(ids) for ids in samples.texts(index))
        lines = [f"sample {index}", f"question  {question}", f"text      {right}"]
        return "\n".join([*lines, *(f"negative  {text}" for text in wrong)])

    def picture(self, found: Measured, file: Path) -> bool:
        """Draw how often the right text is among the first.

        Args:
            found: Vectors and marks of all pairs.
            file: Picture to write.
        """
        from aitrain.tasks.pictures import bars

        metrics = {name: value for name, value in self.metrics(found).items() if name != "loss"}
        words = {
            "recall_at_1": "right text first",
            "recall_at_5": "among the first 5",
            "recall_at_10": "among the first 10",
        }
        names = [words.get(name, name.replace("_", " ")) for name in metrics]
        bars(names, list(metrics.values()), "questions that find their text", file)
        return True

    def export(self, weights: Mapping[str, torch.Tensor], job: ExportJob) -> None:
        """Write a folder that transformers and sentence-transformers load.

        Args:
            weights: Trained tensors of a checkpoint.
            job: Destination, and facts for its model card.
        """
        from aitrain.models.sentence_folder import add_pooling

        super().export(weights, job)
        if job.merge or not (job.to / "adapter").is_dir():
            add_pooling(job.place("model"), self.keys, self.sequence_tokens, int(self.located.facts.hidden_size or 0))


def _pool(marks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places of all different texts among all texts, and which of them is each question's own.

    Args:
        marks: `(N, T)`; the first of each row is the question.
    """
    place: dict[int, int] = {}
    first: list[int] = []
    for at, mark in enumerate(marks.flatten().tolist()):
        if at % marks.shape[1] and mark >= 0 and mark not in place:
            place[mark] = len(first)
            first.append(at)
    return torch.tensor(first), torch.tensor([place[mark] for mark in marks[:, 1].tolist()])
