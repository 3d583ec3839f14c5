"""Reranking: a cross-encoder reads a question together with each text and scores it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from aitrain.config.task import Reranker as Config
from aitrain.data.columns import Columns, ColumnWriter
from aitrain.data.order import sample_index
from aitrain.data.pairs import PairedTexts, read_pairs
from aitrain.data.records import read_records
from aitrain.data.samples import Batch, Integers, Samples, Splits
from aitrain.data.source import Source
from aitrain.data.splits import split
from aitrain.data.text_account import TextAccount
from aitrain.dist.group import Group
from aitrain.errors import DataError
from aitrain.models.load import Located
from aitrain.tasks.data_files import source_to_predict
from aitrain.tasks.metric import Metric
from aitrain.tasks.retrieval_metrics import ranks_of, search_metrics
from aitrain.tasks.task import Measured, Watch, unwatched
from aitrain.tasks.text_encoder import TextEncoder

VERSION = 1
"""Raised whenever the same input would be prepared differently."""

METRICS = ("mrr", "ndcg_at_10", "recall_at_1")

# Shapes: M = questions of a micro-batch, C = candidates of a question, the right one first.


@dataclass(frozen=True)
class CandidateSamples:
    """Token sequences of a question with each of its candidates; see `Samples`."""

    task: Reranker
    columns: Columns

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def weights(self) -> Integers:
        """One per question, `(N,)`."""
        return np.ones(len(self), dtype=np.int64)

    @property
    def units(self) -> Integers:
        """Tokens of each question with its candidates, `(N,)`."""
        return self.columns.lengths("ids")

    def parts(self, name: str, index: int) -> list[npt.NDArray[Any]]:
        """Return one column of a question, candidate by candidate.

        Args:
            name: `ids` or `types`.
            index: Number of the question.
        """
        ends = np.cumsum(self.columns.get("lengths", index))
        return np.split(self.columns.get(name, index), ends[:-1])

    def collate(self, rows: Integers, size: int) -> Batch:
        """Collate questions into one padded batch.

        Args:
            rows: Numbers of the questions.
            size: M, questions of the batch.

        Returns:
            What `TextEncoder.padded` makes of the `(M C)` pairs, question by question; `token_type_ids` of the same
            shape; `real`, float32 `(M,)`: 1 for a question, else 0.
        """
        count = 1 + self.task.negatives
        ids = [part for row in rows for part in self.parts("ids", int(row))]
        batch = self.task.padded(ids, size * count)
        types = torch.zeros_like(batch["input_ids"])
        for at, part in enumerate(part for row in rows for part in self.parts("types", int(row))):
            types[at, : len(part)] = torch.from_numpy(np.array(part, dtype=np.int64))
        return batch | {"token_type_ids": types, "real": batch["real"].view(size, count)[:, 0]}


class Reranker(TextEncoder):
    """A cross-encoder; see `Task`."""

    primary = Metric("mrr", greater_is_better=True)
    weight_unit = "questions"
    auto, adapter_kind, use = "AutoModelForSequenceClassification", "SEQ_CLS", "text-ranking"

    def __init__(self, config: RunConfig, accelerator: str = "cpu", located: Located | None = None) -> None:
        super().__init__(config, accelerator, located)
        assert isinstance(config.task, Config) and isinstance(config.data, Pairs), "the recipe was checked"
        self.data, self.negatives = config.data, config.task.negatives
        self.texts_per_sample = 1 + self.negatives
        self._shown: CandidateSamples | None = None

    def settings(self) -> dict[str, Any]:
        """Return settings for a head with one output: how well a text answers."""
        return {"num_labels": 1}

    def samples(self, group: Group, watch: Watch = unwatched) -> Splits:
        """Read, check and tokenise questions with their candidates; see `Task.samples`.

        Args:
            group: The ranks.
            watch: Called between the files.
        """
        data = self.data
        fields = [data.query_field, data.positive_field, data.negatives_field]
        content = {"version": VERSION, "fields": fields, "negatives": self.negatives}
        folders = self.prepared(group, content, lambda source, first, to: self._write(source, to, watch))
        accounts = [TextAccount.load(folder) for folder in folders]
        train, validation = Columns.open(folders[0]), Columns.open(folders[-1]) if len(folders) > 1 else None
        train, validation, same = split(train, validation, ["asked"], data, self.config.seed)
        account = accounts[0].split(accounts, len(train), 0 if validation is None else len(validation), same)
        held = None if validation is None else CandidateSamples(self, validation)
        self._shown = held or CandidateSamples(self, train)
        return Splits(CandidateSamples(self, train), held, account, account.fingerprint())

    def _write(self, source: Source, folder: Path, watch: Watch) -> None:
        found = read_pairs(source, self.data)
        watch()
        account = TextAccount(source.name, source.digest(), len(found.queries))
        with ColumnWriter(
            folder, {"ids": np.int32, "types": np.int8, "lengths": np.int32, "asked": np.int32}
        ) as writer:
            for at, (query, where) in enumerate(zip(found.queries, found.places, strict=True)):
                ids, types = self.encoded(query, candidates(found, at, self.negatives))
                if any(len(row) == self.sequence_tokens for row in ids):
                    account.cut.add(where)
                lengths = [len(row) for row in ids]
                asked = self.tokenise([query])[0]
                writer.add(ids=np.concatenate(ids), types=np.concatenate(types), lengths=lengths, asked=asked)
                account.texts += 1
                account.tokens += sum(lengths)
        account.save(folder)

    def encoded(self, query: str, texts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Return token ids and segments of a question with each text.

        Args:
            query: The question.
            texts: The texts; only they are cut when both together are too long.
        """
        apart = self.tokenizer.sep_token_id is not None
        pairs = ([query] * len(texts), texts) if apart else ([f"{query}\n{text}" for text in texts],)
        found = self.tokenizer(
            *pairs,
            truncation="only_second" if apart else True,
            max_length=self.sequence_tokens,
            return_attention_mask=False,
            return_token_type_ids=True,
            verbose=False,
        )
        return found["input_ids"], found["token_type_ids"]

    def shown_sample(self, samples: Samples, index: int) -> str:
        """Return a question with each of its candidates, as the model reads them.

        Args:
            samples: From `samples`.
            index: Number of the question.
        """
        assert isinstance(samples, CandidateSamples), "samples of this task"
        right, *wrong = (self.tokenizer.decode(ids) for ids in samples.parts("ids", index))
        return "\n".join([f"sample {index}", f"right  {right}", *(f"wrong  {text}" for text in wrong)])

    def scores(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return how well each text answers, float32 `(rows,)`.

        Args:
            model: The model.
            batch: `input_ids`, `attention_mask` and `token_type_ids`, `(rows, L)`.
        """
        names = ["input_ids", "attention_mask"]
        if "token_type_ids" in self.tokenizer.model_input_names:  # what others give the exported model, too
            names.append("token_type_ids")
        found: torch.Tensor = model(**{name: batch[name] for name in names}).logits
        return found[:, 0].float()

    def _losses(self, scores: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        right = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
        return F.cross_entropy(scores, right, reduction="none") * batch["real"]

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the sum over the questions of the cross entropy of the right text among the candidates.

        Args:
            model: The model.
            batch: From `CandidateSamples.collate`.

        Source: Cao et al. 2007 (ListNet) with one right text.
        """
        scores = self.scores(model, batch).view(len(batch["real"]), -1)
        return self._losses(scores, batch).sum()

    def measure(self, model: nn.Module, batch: Mapping[str, Any]) -> Measured:
        """Measure one batch.

        Args:
            model: The model.
            batch: From `CandidateSamples.collate`.

        Returns:
            Sums of losses and questions; the scores of each question's candidates.
        """
        scores = self.scores(model, batch).view(len(batch["real"]), -1)
        sums = torch.stack([self._losses(scores, batch).double().sum(), batch["real"].double().sum()])
        return Measured(sums, scores)

    def metrics(self, found: Measured) -> dict[str, float]:
        """Return the loss, and rank of the right text among the candidates.

        Args:
            found: Sums, and the scores of all candidates.
        """
        assert found.rows is not None, "`measure` gives rows"
        return super().metrics(found) | _placed(found.rows)

    def baselines(self, splits: Splits) -> dict[str, dict[str, float]]:
        """Return the metrics of guessing and of counting common words.

        Args:
            splits: The samples.
        """
        held = splits.validation
        if held is None:
            return {}
        assert isinstance(held, CandidateSamples), "samples of this task"
        common = torch.zeros(len(held), 1 + self.negatives)
        for at in range(len(held)):
            asked = held.columns.get("asked", at)
            for column, ids in enumerate(held.parts("ids", at)):
                common[at, column] = len(set(asked.tolist()) & set(ids[len(asked) :].tolist()))
        # when guessing, all ranks of the right text are equally likely
        chance = search_metrics(torch.arange(1, 2 + self.negatives))
        return {"chance": {name: chance[name] for name in METRICS}, "words in common": _placed(common)}

    def answers(self, model: nn.Module, device: torch.device, stop: Callable[[], bool]) -> list[dict[str, str]]:
        """Return the best text for three held-out questions.

        Args:
            model: The model.
            device: Where it is.
            stop: Whether to end early.
        """
        shown = self._shown
        if shown is None:
            return []
        rows = np.arange(min(3, len(shown)))
        batch = {key: value.to(device) for key, value in shown.collate(rows, len(rows)).items()}
        best = self.scores(model, batch).view(len(rows), -1).argmax(1).tolist()
        found = []
        for at, choice in zip(rows.tolist(), best, strict=True):
            query = str(self.tokenizer.decode(shown.columns.get("asked", at), skip_special_tokens=True))
            both = str(self.tokenizer.decode(shown.parts("ids", at)[choice], skip_special_tokens=True))
            text = both.removeprefix(query).strip()
            query, text = (each if len(each) < 100 else each[:97] + "..." for each in (query, text))
            found.append({"prompt": query, "answer": f"{'right' if choice == 0 else 'wrong'}: {text}"})
        return found

    def picture(self, found: Measured, file: Path) -> bool:
        """Draw the ranks of the right text.

        Args:
            found: The scores of all candidates.
            file: Picture to write.
        """
        if found.rows is None:
            return False
        from aitrain.tasks.pictures import bars

        ranks = ranks_of(found.rows, torch.zeros(len(found.rows), dtype=torch.int64))
        places = range(1, 2 + self.negatives)
        shares = [float((ranks.ceil() == place).double().mean()) for place in places]
        title = f"rank of the right text among {len(shares)}, share of {len(ranks)} held-out questions"
        bars([f"place {place}" for place in places], shares, title, file)
        return True

    def predictions(self, model: nn.Module, path: Path, device: torch.device) -> Iterator[dict[str, Any]]:
        """Yield the texts of each record of a file, the best first, with their scores.

        Args:
            model: From `trained_model`.
            path: A file of records with a question and a list `texts`.
            device: Where the model is.

        Raises:
            DataError: A record has no question or no texts.
        """
        for where, record in read_records(source_to_predict(path, self.data, self.data.query_field)):
            if isinstance(record, DataError):
                raise record
            query, texts = record.get(self.data.query_field), record.get("texts")
            if not isinstance(query, str) or not isinstance(texts, list) or not texts:
                raise DataError(f"{where}: write {{{self.data.query_field!r}: a question, 'texts': a list of texts}}")
            ids, types = self.encoded(query, [str(text) for text in texts])
            batch = self.padded(ids, len(ids))
            batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
            for at, part in enumerate(types):
                batch["token_type_ids"][at, : len(part)] = torch.tensor(part)
            scores = self.scores(model, {key: value.to(device) for key, value in batch.items()}).cpu()
            ranked = [
                {"text": texts[at], "score": round(float(scores[at]), 6)} for at in scores.argsort(descending=True)
            ]
            yield {self.data.query_field: query, "texts": ranked}


def candidates(found: PairedTexts, at: int, negatives: int) -> list[str]:
    """Return a question's own text and texts that do not answer it: those of its record, then some of other records.

    Args:
        found: What the file holds.
        at: Number of the record.
        negatives: How many.

    Raises:
        DataError: The file has fewer different texts.
    """
    own = [found.positives[at], *found.negatives[at][:negatives]]
    size, drawn = len(found.positives), 0
    while len(own) <= negatives:
        if drawn == size:
            raise DataError(
                f"{found.places[at]}: there are not {negatives} other texts in the file: write "
                f"task.negatives={len(own) - 1} or give `negatives`"
            )
        text = found.positives[sample_index(at, drawn, size, shuffle=True)]
        drawn += 1
        if text not in own:
            own.append(text)
    return own


def _placed(scores: torch.Tensor) -> dict[str, float]:
    """Return the metrics of candidates of which the first is right."""
    found = search_metrics(ranks_of(scores, torch.zeros(len(scores), dtype=torch.int64)))
    return {name: found[name] for name in METRICS}
