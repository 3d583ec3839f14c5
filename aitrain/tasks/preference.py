"""Preference tuning on pairs of answers (DPO, IPO, SimPO, ORPO): the better one is made more probable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from aitrain.config import RunConfig
from aitrain.config.data import Preferences
from aitrain.config.task import Preference
from aitrain.config.trainer import Precision
from aitrain.data.cached import cached, name_of, shared
from aitrain.data.columns import Columns, ColumnWriter
from aitrain.data.labels import held_out
from aitrain.data.preferences import SIDES, read_preferences
from aitrain.data.samples import Batch, Integers, Samples, Splits
from aitrain.data.source import Source
from aitrain.data.splits import overlap
from aitrain.data.text_account import TextAccount
from aitrain.data.token_samples import pad_token_id, padded
from aitrain.dist.group import Group
from aitrain.models.load import Located, build_model
from aitrain.ops.cross_entropy.op import cross_entropy
from aitrain.tasks.causal_lm import CausalLM
from aitrain.tasks.metric import Metric
from aitrain.tasks.preference_losses import Answers, losses
from aitrain.tasks.task import Measured, Room, Watch, unwatched
from aitrain.tasks.token_data import cache_folder, data_files

VERSION = 1
"""Raised whenever the same input would be prepared differently."""

AT_ONCE = 4
"""Micro-batch in pairs while the reference is computed."""

# Shapes: M = pairs of a micro-batch; a batch has 2 M rows, first the better answers, then the others.


@dataclass(frozen=True)
class PreferenceSamples:
    """Pairs of token sequences; see `Samples`."""

    columns: Columns
    pad_token: int
    reference: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), dtype=np.float32))
    """Log-probabilities of both answers under the model at its start, `(N, 2)`; empty = none are needed."""

    sides: ClassVar[tuple[str, str]] = SIDES
    """Fields of the two answers of a sample."""

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def weights(self) -> Integers:
        """One per pair, `(N,)`."""
        return np.ones(len(self), dtype=np.int64)

    @property
    def units(self) -> Integers:
        """Tokens of both answers with their prompt, `(N,)`."""
        return self.columns.lengths(self.sides[0]) + self.columns.lengths(self.sides[1])

    def collate(self, rows: Integers, size: int) -> Batch:
        """Collate pairs into one padded batch.

        Args:
            rows: Numbers of the pairs.
            size: M, pairs of the batch.

        Returns:
            As `token_samples.collate` of `2 M` sequences; `reference`, float32 `(M, 2)`; `real`, float32 `(M,)`.
        """
        sequences: list[Any] = [None] * (2 * size)
        for side, name in enumerate(self.sides):
            for at, row in enumerate(rows):
                marks = self.columns.get(f"{name}_marks", int(row)).astype(bool)
                sequences[side * size + at] = (self.columns.get(name, int(row)), marks)
        reference, real = torch.zeros(size, 2), torch.zeros(size)
        real[: len(rows)] = 1.0
        if len(self.reference):
            reference[: len(rows)] = torch.from_numpy(self.reference[rows])
        return padded(sequences, self.pad_token) | {"reference": reference, "real": real}


class PreferenceTask(CausalLM):
    """A language model that is tuned on pairs of answers; see `Task`."""

    primary = Metric("accuracy", greater_is_better=True)
    weight_unit = "pairs"

    def __init__(self, config: RunConfig, accelerator: str = "cpu", located: Located | None = None) -> None:
        super().__init__(config, accelerator, located)
        assert isinstance(config.task, Preference) and isinstance(config.data, Preferences), "the recipe was checked"
        self.keys, self.data = config.task, config.data

    def samples(self, group: Group, watch: Watch = unwatched) -> Splits:
        """Read, check and tokenise the pairs, and compute the reference once; see `Task.samples`.

        Args:
            group: The ranks.
            watch: Called between the parts of the work.
        """
        files = data_files(self.config)
        paths = [path for path in (files.train, files.validation) if path is not None]
        folders = shared(group, cache_folder(), lambda: [self._prepare(path) for path in paths])
        watch()
        pad = pad_token_id(self.tokenizer)
        whole = [self.made_of(Columns.open(folder), pad) for folder in folders]
        if self.keys.needs_reference:
            whole = [self._with_reference(each, folder, group) for each, folder in zip(whole, folders, strict=True)]
        watch()
        train, validation = whole[0], whole[1] if len(whole) > 1 else None
        rows = held_out([0] * len(train), self.data, self.config.seed)
        if rows is not None:
            validation, train = _select(train, rows), _select(train, np.setdiff1d(np.arange(len(train)), rows))
        same = 0 if validation is None else overlap(train.columns, validation.columns, train.sides, self.data)
        accounts = [TextAccount.load(folder) for folder in folders]
        account = accounts[0].split(accounts, len(train), 0 if validation is None else len(validation), same)
        return Splits(train, validation, account, account.fingerprint())

    def made_of(self, columns: Columns, pad_token: int) -> PreferenceSamples:
        """Return the samples of a prepared file.

        Args:
            columns: What `write` wrote.
            pad_token: Fills sequences.
        """
        return PreferenceSamples(columns, pad_token)

    def _prepare(self, source: Source) -> Path:
        facts = self.facts()
        content = {"version": VERSION, "task": "preference", "file": [source.name, source.digest()]}
        content |= {key: facts[key] for key in ("tokenizer", "chat_template")}
        content |= {"length": self.sequence_tokens, "long": self.data.too_long.name, "system": self.keys.system_prompt}
        content |= {"class": type(self).__name__}
        return cached(cache_folder(), content, lambda folder: self.write(source, folder))

    def write(self, source: Source, folder: Path) -> None:
        """Read, tokenise and write the records of a file.

        Args:
            source: The data files.
            folder: An empty folder.
        """
        found = read_preferences(source, self.data, self.tokenizer, self.keys.system_prompt)
        account = TextAccount(source.name, source.digest(), len(found.chosen) + found.dropped.count)
        account.dropped, account.texts = found.dropped, len(found.chosen)
        types = {name: np.int32 for side in SIDES for name in (side, f"{side}_marks")}
        with ColumnWriter(folder, types) as writer:
            for chosen, rejected in zip(found.chosen, found.rejected, strict=True):
                fields: dict[str, Any] = {"chosen": chosen.ids, "chosen_marks": chosen.trained}
                writer.add(**fields, rejected=rejected.ids, rejected_marks=rejected.trained)
                account.tokens += len(chosen.ids) + len(rejected.ids)
        account.save(folder)

    def _with_reference(self, samples: PreferenceSamples, folder: Path, group: Group) -> PreferenceSamples:
        """Return the samples with the log-probabilities of the model as it is at the start.

        They are computed once, each rank doing a share, and kept in the cache: a resumed run finds them.
        """
        precision = self.config.trainer.precision.name
        content = {"reference of": folder.name, "model": self.facts()["model"], "init": self.config.model.init.name}
        content |= {"precision": precision, "accelerator": self.accelerator, "seed": self.config.seed}

        def there() -> str | None:
            found = cache_folder() / name_of(content) / "reference.npy"
            return str(found) if found.is_file() else None

        known = group.by_first(there)
        values = np.load(known) if known is not None and group.ranks.is_first else None
        if known is None:
            ranks = group.ranks
            parts = group.everywhere(self._reference(samples, range(ranks.data_rank, len(samples), ranks.data_size)))
            values = np.zeros((len(samples), 2), dtype=np.float32)
            for rank, part in enumerate(parts):
                values[rank :: ranks.data_size] = part
            if ranks.is_first:
                found = values
                cached(cache_folder(), content, lambda to: np.save(to / "reference.npy", found))
        return replace(samples, reference=group.from_first(values))

    def _reference(self, samples: PreferenceSamples, rows: range) -> npt.NDArray[np.float32]:
        """Compute the log-probabilities of some pairs under the base model, which is built for that and then
        released.
        """
        device = torch.device(self.accelerator)
        torch.manual_seed(self.config.seed)
        model = nn.Module.to(build_model(self.located), device).eval()
        mixed = self.config.trainer.precision is Precision.bf16
        found = [np.zeros((0, 2), dtype=np.float32)]
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            for first in range(0, len(rows), AT_ONCE):
                numbers = np.array(rows[first : first + AT_ONCE], dtype=np.int64)
                batch = samples.collate(numbers, len(numbers))
                moved = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
                sums, _ = self._answers(model, moved)
                found.append(sums.view(2, -1).T.float().cpu().numpy())
        return np.concatenate(found)

    def fitting(self, room: Room) -> int | None:
        """Estimate how many pairs fit into memory at once: two sequences each.

        Args:
            room: The memory.
        """
        sequences = super().fitting(room)
        return None if sequences is None else sequences // 2

    def finish(self, model: nn.Module) -> None:
        """Change the built model as the recipe says; the head keeps its logits, which these losses need row by row.

        Args:
            model: What `build` returned.
        """
        super().finish(model)
        self._fused = False

    def _answers(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed log-probability of each row's answer and how many tokens it has, `(2 M,)` each."""
        logits, targets = self.trained_logits(model, batch)
        each = cross_entropy(logits, targets, reduction="none")
        return -each.sum(1), (targets >= 0).sum(1)

    def pairs(self, model: nn.Module, batch: Mapping[str, Any]) -> Answers:
        """Return the log-probabilities of both answers of each pair.

        Args:
            model: The model.
            batch: From `PreferenceSamples.collate`.
        """
        (chosen, rejected), (ours, theirs) = (part.view(2, -1).unbind(0) for part in self._answers(model, batch))
        reference = batch["reference"]
        return Answers(chosen, rejected, ours.clamp(min=1), theirs.clamp(min=1), reference[:, 0], reference[:, 1])

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the sum of the losses of the pairs.

        Args:
            model: The model.
            batch: From `PreferenceSamples.collate`.
        """
        return (losses(self.pairs(model, batch), self.keys) * batch["real"]).sum()

    def measure(self, model: nn.Module, batch: Mapping[str, Any]) -> Measured:
        """Measure one batch.

        Args:
            model: The model.
            batch: From `PreferenceSamples.collate`.

        Returns:
            Sums of losses, pairs, pairs told apart rightly, and margins; the margin of each pair.
        """
        answers, real = self.pairs(model, batch), batch["real"].double()
        margins = answers.margins(self.keys).double()
        right = (margins > 0).double() + (margins == 0).double() / 2  # before the first step all margins of dpo are 0
        values = (losses(answers, self.keys).double(), torch.ones_like(real), right, margins)
        return Measured(torch.stack([(value * real).sum() for value in values]), margins.float()[:, None])

    def metrics(self, found: Measured) -> dict[str, float]:
        """Return loss, the share of pairs of which the better answer is ahead, and by how much on average.

        Args:
            found: Sums over all pairs.
        """
        total, pairs, right, margin = found.sums.tolist()
        return {"loss": total / pairs, "accuracy": right / pairs, "margin": margin / pairs}

    def picture(self, found: Measured, file: Path) -> bool:
        """Draw by how much the better answers are ahead.

        Args:
            found: The margins of all pairs.
            file: Picture to write.
        """
        if found.rows is None:
            return False
        from aitrain.tasks.pictures import histogram

        margins = found.rows[:, 0].tolist()
        right = sum(margin > 0 for margin in margins)
        title = f"{right} of {len(margins)} held-out pairs: the better answer is ahead (margin above 0)"
        histogram(margins, title, "margin", file)
        return True

    def sentence(self, metrics: Mapping[str, float]) -> str:
        """Return metrics in readable form.

        Args:
            metrics: From `metrics`.
        """
        return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())

    def baselines(self, splits: Splits) -> dict[str, dict[str, float]]:
        """Return the metrics of guessing and of always preferring the longer or the shorter answer.

        Args:
            splits: The samples.
        """
        held = splits.validation
        if held is None:
            return {}
        assert isinstance(held, PreferenceSamples), "samples of this task"
        more = np.sign(held.columns.lengths("chosen") - held.columns.lengths("rejected"))
        longer = float(((more > 0) + (more == 0) / 2).mean())
        best = max(("the longer answer", longer), ("the shorter answer", 1 - longer), key=lambda entry: entry[1])
        return {"a coin": {"accuracy": 0.5}, best[0]: {"accuracy": best[1]}}

    def shown_sample(self, samples: Samples, index: int) -> str:
        """Return a pair, the better answer first.

        Args:
            samples: From `samples`.
            index: Number of the pair.
        """
        assert isinstance(samples, PreferenceSamples), "samples of this task"
        texts = [str(self.tokenizer.decode(samples.columns.get(side, index))) for side in SIDES]
        return f"sample {index}, chosen:\n{texts[0]}\nrejected:\n{texts[1]}"


def _select(samples: PreferenceSamples, rows: Integers) -> PreferenceSamples:
    reference = samples.reference[rows] if len(samples.reference) else samples.reference
    return replace(samples, columns=samples.columns.select(rows), reference=reference)
