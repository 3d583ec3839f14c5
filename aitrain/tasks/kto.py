"""Preference tuning on single answers labelled good or bad (KTO)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from aitrain.data.columns import Columns, ColumnWriter
from aitrain.data.preferences import read_judged
from aitrain.data.samples import Batch, Integers, Samples, Splits
from aitrain.data.source import Source
from aitrain.data.text_account import TextAccount
from aitrain.tasks.gathering import GatheringTask
from aitrain.tasks.preference import PreferenceSamples, PreferenceTask
from aitrain.tasks.task import Measured


@dataclass(frozen=True)
class JudgedSamples(PreferenceSamples):
    """Answers with their labels, and the same prompts with answers of other records; see `Samples`."""

    sides: ClassVar[tuple[str, str]] = ("answer", "other")

    def collate(self, rows: Integers, size: int) -> Batch:
        """Collate answers into one padded batch.

        Args:
            rows: Numbers of the answers.
            size: M, answers of the batch.

        Returns:
            As `PreferenceSamples.collate`, and `good`, int64 `(M, 1)`: 1 for a good answer, 0 for a bad one, -1 for
            none.
        """
        good = torch.full((size, 1), -1, dtype=torch.int64)
        good[: len(rows), 0] = torch.from_numpy(self.columns.single("good")[rows].astype(np.int64))
        return super().collate(rows, size) | {"good": good}


class KtoTask(GatheringTask, PreferenceTask):
    """A language model that is tuned on judged answers; see `Task`.

    The reference point is how probable unjudged answers have become, a mean over the global batch: so the
    loss of one answer depends on the others, and the trainer gathers.
    """

    sample = "answer"
    weight_unit = "answers"

    def made_of(self, columns: Columns, pad_token: int) -> PreferenceSamples:
        """Return the samples of a prepared file.

        Args:
            columns: What `write` wrote.
            pad_token: Fills sequences.
        """
        return JudgedSamples(columns, pad_token)

    def write(self, source: Source, folder: Path) -> None:
        """Read, tokenise and write the records of a file.

        Args:
            source: The data files.
            folder: An empty folder.
        """
        found = read_judged(source, self.data, self.tokenizer, self.keys.system_prompt)
        account = TextAccount(source.name, source.digest(), len(found.answers) + found.dropped.count)
        account.dropped, account.texts = found.dropped, len(found.answers)
        account.counts = {"good": sum(found.good), "bad": len(found.good) - sum(found.good)}
        types = {name: np.int32 for side in JudgedSamples.sides for name in (side, f"{side}_marks")}
        with ColumnWriter(folder, types | {"good": np.int32}) as writer:
            for answer, other, good in zip(found.answers, found.others, found.good, strict=True):
                fields: dict[str, Any] = {"answer": answer.ids, "answer_marks": answer.trained}
                writer.add(**fields, other=other.ids, other_marks=other.trained, good=[int(good)])
                account.tokens += len(answer.ids) + len(other.ids)
        account.save(folder)

    def outputs(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return how much more probable each answer, and the other one at its prompt, is than at the start, `(M, 2)`.

        Args:
            model: The model.
            batch: From `JudgedSamples.collate`.
        """
        found = self.pairs(model, batch)
        ratios = (found.chosen - found.reference_chosen, found.rejected - found.reference_rejected)
        return torch.stack(ratios, 1)

    def marks(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return which answers are good, `(M, 1)`; -1 where there is none.

        Args:
            batch: From `JudgedSamples.collate`.
        """
        found: torch.Tensor = batch["good"]
        return found

    def gathered_loss(self, outputs: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
        """Return the sum of the losses over the whole global batch.

        Args:
            outputs: Of all answers, `(G, 2)`.
            marks: Which of them are good, `(G, 1)`.

        Source: Ethayarajh et al., arXiv:2402.01306, equations 7 and 8.
        """
        here = marks[:, 0] >= 0
        (own, other), good = outputs[here].unbind(1), marks[here, 0] == 1
        ahead = self.keys.beta * (own - reference_point(other))
        gains = torch.where(good, torch.sigmoid(ahead), torch.sigmoid(-ahead))
        weights = torch.where(good, self.keys.good_weight, self.keys.bad_weight)
        return (weights * (1 - gains)).sum()

    def measure(self, model: nn.Module, batch: Mapping[str, Any]) -> Measured:
        """Measure one batch.

        Args:
            model: The model.
            batch: From `JudgedSamples.collate`.

        Returns:
            Sums of 0 and of answers, because the loss is one of all answers together; outputs and judgement of each.
        """
        good = batch["good"].double()
        sums = torch.stack([torch.zeros_like(good[0, 0]), (good >= 0).double().sum()])
        return Measured(sums, torch.cat([self.outputs(model, batch).float(), good.float()], 1))

    def metrics(self, found: Measured) -> dict[str, float]:
        """Return loss, the share of answers classified correctly, and the distance between good and bad ones.

        Args:
            found: Outputs and judgements of all answers.
        """
        assert found.rows is not None, "`measure` gives rows"
        rows, good = found.rows[:, :2].double(), found.rows[:, 2] > 0.5
        ahead = self.keys.beta * (rows[:, 0] - reference_point(rows[:, 1]))
        right = torch.where(good, ahead > 0, ahead < 0).double() + (ahead == 0).double() / 2
        loss = float(self.gathered_loss(rows, good.long()[:, None])) / len(rows)
        means = [float(ahead[part].mean()) if part.any() else 0.0 for part in (good, ~good)]
        return {"loss": loss, "accuracy": float(right.mean()), "margin": means[0] - means[1]}

    def picture(self, found: Measured, file: Path) -> bool:
        """Draw the margins of the answers.

        Args:
            found: Outputs and judgements of all answers.
            file: Picture to write.
        """
        if found.rows is None:
            return False
        from aitrain.tasks.pictures import histogram

        ahead = self.keys.beta * (found.rows[:, 0] - reference_point(found.rows[:, 1]))
        right = torch.where(found.rows[:, 2] > 0.5, ahead, -ahead).tolist()
        title = f"{sum(value > 0 for value in right)} of {len(right)} held-out answers scored as they were judged"
        histogram(right, title, "how far", file)
        return True

    def baselines(self, splits: Splits) -> dict[str, dict[str, float]]:
        """Return the metrics of guessing and of always predicting the more common label.

        Args:
            splits: The samples.
        """
        held = splits.validation
        if held is None:
            return {}
        assert isinstance(held, JudgedSamples), "samples of this task"
        share = float((held.columns.single("good") == 1).mean())
        name = "every answer is good" if share >= 0.5 else "every answer is bad"
        return {"a coin": {"accuracy": 0.5}, name: {"accuracy": max(share, 1 - share)}}

    def shown_sample(self, samples: Samples, index: int) -> str:
        """Return an answer with its judgement.

        Args:
            samples: From `samples`.
            index: Number of the answer.
        """
        assert isinstance(samples, JudgedSamples), "samples of this task"
        judged = "good" if samples.columns.get("good", index)[0] else "bad"
        return f"sample {index}, {judged}:\n{self.tokenizer.decode(samples.columns.get('answer', index))}"


def reference_point(others: torch.Tensor) -> torch.Tensor:
    """Return how much more probable unjudged answers have become: at least 0, and without a gradient.

    Args:
        others: How much more probable each is than at the start, `(G,)`.
    """
    return others.detach().mean().clamp(min=0)
