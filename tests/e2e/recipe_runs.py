"""The recipes on what aitrain ships: how each is run in a minute on two cores, and what five seeds reach.

`python tests/e2e/recipe_runs.py OUT.md [RECIPE ...]` trains each recipe with five seeds and writes the table that the
margins of `test_shown_recipes.py` are taken from.

`python tests/e2e/recipe_runs.py --cost OUT.md [RECIPE ...]` runs each recipe once, those of language models too, and
writes the table of time, memory and loss that `docs/recipes.md` shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ON_CPU = ["trainer.accelerator=cpu", "trainer.precision=fp32", "export.dtype=fp32"]
CPU = [*ON_CPU, "trainer.micro_batch_samples=8"]
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


CHAT = [
    *("model.path=asset:tiny-llama", "data.path=asset:verses-en-nl/train.jsonl", "data.sequence_tokens=256"),
    "data.validation_path=asset:verses-en-nl/validation.jsonl",
]
SMALL_MODELS = {
    "quickstart": [],
    "sft_full": [*CHAT, *ON_CPU, "optim.lr=1e-3"],
    "sft_lora": [*CHAT, *ON_CPU, "optim.lr=1e-3"],
    "continued_pretraining": [
        *("model.path=asset:tiny-llama", "data.path=asset:verse-pairs/train.jsonl", "data.text_field=positive"),
        *(
            *ON_CPU,
            "optim.lr=1e-3",
            "data.sequence_tokens=256",
            "trainer.global_batch_samples=8",
            "trainer.max_epochs=3",
        ),
    ],
}
"""Recipes of language models, which have no baseline to compare with, on a model that a CPU trains in a minute."""

COST_HEAD = """# What the recipes cost on shipped data

Date: {date}. {device}.
Time is that of the complete command: start, data preparation, evaluations, training and export.
Memory is the peak resident memory of the process; about {base:.1f} GB of it are Python and its libraries.
Written by `tests/e2e/recipe_runs.py --cost`, which has the options of each run. `sft_qlora` needs a GPU: not run.

| recipe | model | steps | time | memory | held-out loss | metric |
|---|---|---|---|---|---|---|
"""


def cost(recipe: str, folder: Path) -> str:
    """Run a recipe once, and return its row of the table.

    Args:
        recipe: Its name.
        folder: Folder of the runs.
    """
    from aitrain.recipe import load

    shown = RECIPES.get(recipe)
    words = words_of(recipe, folder) if shown else [recipe, *SMALL_MODELS[recipe], f"run.dir={folder / recipe}"]
    begin = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", "aitrain", "train", *words])
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.monotonic() - begin
    assert status == 0, words
    events = [json.loads(line) for line in (folder / recipe / "events.jsonl").read_text().splitlines()]
    measured = [event for event in events if event["event"] == "evaluated"]
    metric = shown.metric if shown else "token_accuracy"
    change = [f"{measured[0][key]:.3f} to {measured[-1][key]:.3f}" for key in ("val_loss", f"val_{metric}")]
    path = load(folder / recipe / "run.yaml").model.path
    if path is None:
        model = "from random weights"
    else:
        model = path.removeprefix("asset:") if shown is None or shown.after is None else f"that of `{shown.after}`"
    steps = measured[-1]["step"]
    spent, memory = f"{seconds // 60:.0f}:{seconds % 60:02.0f} min", f"{used.ru_maxrss / 1e6:.1f} GB"
    return f"| {recipe} | {model} | {steps} | {spent} | {memory} | {change[0]} | {metric} {change[1]} |"


def costs(out: Path, names: list[str]) -> None:
    """Run recipes once, all if none is named, and write the table.

    Args:
        out: File to write.
        names: Recipes to run.
    """
    from aitrain.bench.ops.ceilings import processor

    imports = subprocess.Popen([sys.executable, "-c", "import aitrain.trainer.fit, aitrain.tasks.causal_lm"])
    base = os.wait4(imports.pid, 0)[2].ru_maxrss / 1e6
    device = f"{processor()}, fp32"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for recipe in [*SMALL_MODELS, *RECIPES]:
            if not names or recipe in names:
                rows.append(cost(recipe, Path(folder)))
    out.write_text(COST_HEAD.format(date=date.today(), device=device, base=base) + "\n".join(rows) + "\n")


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
    if sys.argv[1] == "--cost":
        costs(Path(sys.argv[2]), sys.argv[3:])
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
