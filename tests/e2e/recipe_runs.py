"""The recipes on what aitrain ships: how each is run in a minute on two cores, and what five seeds reach.

`python tests/e2e/recipe_runs.py OUT.md [RECIPE ...]` trains each recipe with five seeds and writes the table that the
margins of `test_shown_recipes.py` are taken from.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

CPU = ["trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.micro_batch_samples=8", "export.dtype=fp32"]
SEEDS = range(5)


@dataclass(frozen=True)
class Shown:
    """How a recipe is shown."""

    words: list[str]
    metric: str
    model: str | None = "asset:tiny-llama"
    less_is_better: bool = False
    after: str | None = None
    """Recipe whose model this one starts from."""


def _data(asset: str, kind: str) -> list[str]:
    return [f"data.path=asset:{asset}/train.{kind}", f"data.validation_path=asset:{asset}/test.{kind}"]


RECIPES = {
    "classify_text": Shown([*_data("verses-books", "csv"), "optim.lr=1e-3", "trainer.max_epochs=3"], "f1_macro"),
    "classify_image": Shown(
        [*_data("garments", "parquet"), "optim.lr=1e-3", "trainer.max_epochs=12", "trainer.micro_batch_samples=32"],
        "balanced_accuracy",
        model="asset:tiny-convnext",
    ),
    "forecast_timeseries": Shown(
        [
            *("data.path=asset:weather-hours/year.csv", "data.known=[sun]", "task.context_steps=168", "optim.lr=2e-3"),
            *("trainer.max_epochs=null", "trainer.max_steps=400", "trainer.micro_batch_samples=64"),
        ],
        "mase",
        model=None,
        less_is_better=True,
    ),
    "tag_tokens": Shown([*_data("care-notes", "jsonl"), "optim.lr=1e-3", "trainer.max_epochs=6"], "span_f1"),
    "embeddings": Shown([*_data("verse-pairs", "jsonl"), "optim.lr=1e-3", "trainer.max_epochs=4"], "ndcg_at_10"),
    "preference_dpo": Shown(
        [
            *_data("verse-choices", "jsonl"),
            *("data.sequence_tokens=256", "adapter=none", "optim.lr=3e-4", "trainer.max_epochs=null"),
            "trainer.max_steps=12",
        ],
        "accuracy",
    ),
    "reranker": Shown(
        [*_data("verse-pairs", "jsonl"), "optim.lr=5e-4", "trainer.max_epochs=3", "data.sequence_tokens=160"],
        "mrr",
        after="embeddings",
    ),
}


def words_of(recipe: str, folder: Path) -> list[str]:
    """Return the words that run a recipe.

    Args:
        recipe: Its name.
        folder: Folder of the runs; that of another recipe may be where this one starts from.
    """
    shown = RECIPES[recipe]
    model = shown.model if shown.after is None else str(folder / shown.after)
    base = [] if model is None else [f"model.path={model}"]
    return [recipe, *base, *CPU, *shown.words, f"run.dir={folder / recipe}"]


def reached(run: Path, metric: str, less_is_better: bool = False) -> tuple[float, float, float]:
    """Return the metric before training, after it, and that of the best trivial answer.

    Args:
        run: Run directory.
        metric: Its name.
        less_is_better: Which trivial answer is the best.
    """
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    measured = [event[f"val_{metric}"] for event in events if event["event"] == "evaluated"]
    trivial = next(event for event in events if event["event"] == "baselines")
    others = [value[metric] for value in trivial.values() if isinstance(value, dict) and metric in value]
    return measured[0], measured[-1], (min if less_is_better else max)(others)


def main(out: Path, names: list[str]) -> None:
    """Train recipes, all if none is named, with all seeds, and write the table."""
    from aitrain.trainer.start import train

    rows = []
    for recipe, shown in RECIPES.items():
        if names and recipe not in names:
            continue
        found = []
        for seed in SEEDS:
            folder = Path(tempfile.gettempdir()) / f"recipes-of-seed-{seed}"
            assert train(words_of(recipe, folder)[0], [*words_of(recipe, folder)[1:], f"seed={seed}"]) == 0
            found.append(reached(folder / recipe, shown.metric, shown.less_is_better))
        before, after, trivial = zip(*found, strict=True)
        best, worst = (min, max) if shown.less_is_better else (max, min)
        each = ", ".join(f"{value:.3f}" for value in after)
        rows.append(
            f"| {recipe} | {shown.metric} | {best(before):.3f} | {best(trivial):.3f} | {each} | {worst(after):.3f} |"
        )
        head = "# What the recipes reach on shipped data, with five seeds\n\n"
        head += f"Date: {date.today()}, CPU. Texts: `asset:tiny-llama`; the reranker starts from `embeddings`.\n"
        head += "Written by `tests/e2e/recipe_runs.py`, which also has the words of each run.\n\n"
        head += "| recipe | metric | best untrained | best simple answer | after training, seeds 0 to 4 | worst |\n"
        out.write_text(head + "|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
