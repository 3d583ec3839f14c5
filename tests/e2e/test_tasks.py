"""Every task beside language models: two ranks of any strategy have the losses of one, and resume."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tasks.tiny_bert import WORDS, make_bert
from tasks.tiny_images import make_folder, make_resnet, make_vit
from tiny import make_model

from aitrain.checkpoint import store
from aitrain.dist.processes import run_ranks
from aitrain.recipe import compose
from aitrain.trainer.run_directory import RunDirectory

STRATEGIES = ("ddp", "fsdp", "deepspeed_zero2")
STEPS = 4


def texts(path: Path) -> list[str]:
    """Words of two desks in three languages of service."""
    draw = random.Random(0)
    rows = []
    for number in range(37):
        kind = ("plumbing", "billing", "other")[number % 3]
        words = {
            "plumbing": ["pump", "leak", "water"],
            "billing": ["invoice", "paid", "late"],
            "other": ["door", "office"],
        }
        said = draw.choices([*words[kind], *WORDS], k=draw.randint(2, 9))
        rows.append(json.dumps({"text": " ".join(said), "label": kind}))
    path.write_text("\n".join(rows) + "\n")
    return [f"data.path={path}", "data.validation_share=0.2", "data.sequence_tokens=24"]


def notes(path: Path) -> list[str]:
    """Sentences with a marked order number, or none."""
    draw = random.Random(1)
    rows = []
    for number in range(37):
        before, after = (" ".join(draw.choices(WORDS, k=draw.randint(1, 5))) for _ in range(2))
        marked = number % 4 != 0
        text = f"{before} {number} {after}" if marked else f"{before} {after}"
        entities = [{"start": len(before) + 1, "end": len(before) + 1 + len(str(number)), "label": "ORDER"}]
        rows.append(json.dumps({"text": text, "entities": entities if marked else []}))
    path.write_text("\n".join(rows) + "\n")
    return [f"data.path={path}", "data.validation_share=0.2", "data.sequence_tokens=40"]


def pairs(path: Path) -> list[str]:
    """Questions with texts; some texts are right for several, some records have hard negatives."""
    draw = random.Random(2)
    rows = []
    for number in range(37):
        query, text, wrong = (" ".join(draw.choices(WORDS, k=draw.randint(1, 7))) for _ in range(3))
        row = {"query": f"{query} {number}", "positive": f"{text} {number % 30}"}
        rows.append(json.dumps(row | ({"negatives": [wrong]} if number % 3 else {})))
    path.write_text("\n".join(rows) + "\n")
    return [f"data.path={path}", "data.validation_share=0.2", "data.sequence_tokens=24"]


def answers(path: Path) -> list[str]:
    """Pairs of answers of unequal length, for a chat model."""
    draw = random.Random(3)
    rows = []
    for number in range(37):
        asked, good, bad = (" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(3))
        rows.append(json.dumps({"prompt": f"{asked} {number}", "chosen": f"{good} yes", "rejected": f"{bad} no"}))
    path.write_text("\n".join(rows) + "\n")
    return [f"data.path={path}", "data.validation_share=0.2", "data.sequence_tokens=96", "adapter=none"]


def judged(path: Path) -> list[str]:
    """Answers of unequal length that were found good or bad."""
    draw = random.Random(5)
    rows = []
    for number in range(37):
        asked, said = (" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(2))
        rows.append(json.dumps({"prompt": f"{asked} {number}", "completion": said, "label": number % 3 > 0}))
    path.write_text("\n".join(rows) + "\n")
    return [f"data.path={path}", "data.validation_share=0.2", "data.sequence_tokens=96", "adapter=none"]


def pictures(path: Path) -> list[str]:
    """Shapes in folders named after them."""
    folder = path.with_suffix("")
    if not folder.exists():
        make_folder(folder, each=13)
    return [f"data.path={folder}", "data.validation_share=0.2"]


def meters(path: Path) -> list[str]:
    """Two series of hours with gaps, and a column that is known in advance."""
    draw = random.Random(4)
    rows = ["time,price,north,south"]
    for hour in range(140):
        values = [f"{draw.gauss(50 + hour % 24, 5):.3f}" if draw.random() > 0.05 else "" for _ in range(2)]
        rows.append(f"2024-01-{hour // 24 + 1:02d}T{hour % 24:02d}:00,{hour % 5},{','.join(values)}")
    path.with_suffix(".csv").write_text("\n".join(rows) + "\n")
    return [f"data.path={path.with_suffix('.csv')}", "data.known=[price]", "data.gaps=mask"]


TASKS: dict[str, tuple[Callable[[Path], list[str]], list[str]]] = {
    "forecast_timeseries": (
        meters,
        ["task.context_steps=30", "task.horizon_steps=7", "task.width=16", "task.layers=2"],
    ),
    "classify_image": (pictures, []),
    "kto": (judged, ["task.loss=kto"]),
    "classify_text": (texts, ["task.class_weights=balanced"]),
    "tag_tokens": (notes, []),
    "preference_dpo": (answers, []),
    "reranker": (pairs, ["task.negatives=3"]),
    "embeddings": (pairs, ["task.symmetric=true", "task.matryoshka=[16,8]"]),
}
"""Recipe -> what writes its data, and keys of its own."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    make_bert(folder / "bert")
    make_bert(folder / "bert-dropout", dropout=0.1)
    make_model(folder / "llama")
    make_resnet(folder / "resnet")
    make_vit(folder / "vit-dropout", dropout=0.1)
    return folder


MODELS: dict[str, tuple[str | None, str | None]] = {
    "preference_dpo": ("llama", "llama"),
    "kto": ("llama", "llama"),
    "classify_image": ("resnet", "vit-dropout"),
    "forecast_timeseries": (None, None),
}
"""Recipe -> model, and model with dropout; `bert` where it is not told."""


NAMED = {"kto": "preference_dpo"}
"""Another way to use a recipe -> its name."""

EVERY_DAY = ("embeddings",)
SHOWN = [name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.slow) for name in TASKS]


@pytest.fixture(scope="module")
def runs(place: Path, request: pytest.FixtureRequest) -> dict[str, RunDirectory]:
    """All runs of the recipes that are asked for, in two launches: alone, and on two ranks."""
    own = [item for item in request.session.items if item.path == request.path]
    asked = {item.callspec.params["recipe"] for item in own}  # type: ignore[attr-defined]
    made: dict[str, RunDirectory] = {}

    def new(name: str, *words: str) -> None:
        made[name] = RunDirectory.create(
            compose(NAMED.get(recipe, recipe), [*common, *words, f"run.dir={place}/{name}"])
        )

    for recipe in sorted(asked):
        write, keys = TASKS[recipe]
        found = MODELS.get(recipe, ("bert", "bert-dropout"))
        model, dropping = (None if name is None else f"{place}/{name}" for name in found)
        base = [] if model is None else [f"model.path={model}"]
        common = [*base, *write(place / f"{recipe}.jsonl"), *keys, "schedule=constant"]
        common += ["trainer.accelerator=cpu", "trainer.precision=fp32", f"trainer.max_steps={STEPS}", "optim.lr=1e-3"]
        common += ["trainer.max_epochs=null", "trainer.global_batch_samples=8", "trainer.micro_batch_samples=2"]
        common += ["evaluate.every_steps=2", "schedule.warmup_steps=0", "checkpoint.every_steps=2"]
        without = ["export.at_end=false", *(["task.dropout=0"] if recipe == "forecast_timeseries" else [])]
        new(f"{recipe}-one", *without)
        new(f"{recipe}-wide", *without, "trainer.micro_batch_samples=8")
        for strategy in STRATEGIES:
            new(f"{recipe}-{strategy}", *without, f"strategy={strategy}", "trainer.devices=2")
        drops = ["trainer.devices=2", *([] if dropping is None else [f"model.path={dropping}"])]
        drops += ["task.dropout=0.1"] if recipe == "forecast_timeseries" else []
        new(f"{recipe}-whole", *drops)
        new(f"{recipe}-stopped", *drops, "trainer.max_steps=2")
    alone = [made[name] for name in made if name.endswith(("-one", "-wide"))]
    stopped = [made[name] for name in made if name.endswith("-stopped")]
    paired = [made[name] for name in made if name.endswith((*STRATEGIES, "-whole"))]
    together(alone, 1)
    together([*paired, *stopped], 2)
    for run in stopped:
        run.config_file.write_text(run.config_file.read_text().replace("max_steps: 2", f"max_steps: {STEPS}"))
    together(stopped, 2)
    return made


def together(runs: list[RunDirectory], ranks: int) -> None:
    """Train runs one after the other in one launch."""
    many = [sys.executable, str(Path(__file__).with_name("many.py"))]
    assert run_ranks([*many, *(str(run.path) for run in runs)], ranks) == 0


def records(run: RunDirectory) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


@pytest.mark.parametrize("recipe", SHOWN)
@pytest.mark.parametrize("other", ["wide", *STRATEGIES])
def test_losses_depend_on_neither_ranks_nor_micro_batch(runs: dict[str, RunDirectory], recipe: str, other: str) -> None:
    one, many = records(runs[f"{recipe}-one"]), records(runs[f"{recipe}-{other}"])
    assert len(one) == len(many) == STEPS
    for mine, theirs in zip(one, many, strict=True):
        for key in ("samples", "lr"):
            assert mine[key] == theirs[key]
        for key in (key for key in mine if key == "loss" or key.startswith("val_")):
            assert theirs[key] == pytest.approx(mine[key], rel=2e-3, abs=2e-3), key


@pytest.mark.parametrize("recipe", SHOWN)
def test_a_stopped_run_goes_on_exactly(runs: dict[str, RunDirectory], recipe: str) -> None:
    whole, resumed = (records(runs[f"{recipe}-{name}"]) for name in ("whole", "stopped"))
    timed = ("step_time_s", "tokens_per_s", "images_per_s", "windows_per_s")
    plain = [[{k: v for k, v in row.items() if k not in timed} for row in rows] for rows in (whole, resumed)]
    # the evaluation behind the first half is one more for the run that ended there
    assert plain[0] == plain[1]
    first, second = (dict(weights_of(runs[f"{recipe}-{name}"])) for name in ("whole", "stopped"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def weights_of(run: RunDirectory) -> Iterator[tuple[str, torch.Tensor]]:
    found = store.choose(run.checkpoints(run.config()), "newest")
    assert found.step == STEPS
    return ((name, found.read("weights", name)) for name in found.names("weights"))
