"""One short real run of the tiny model on real verses, shared by the tests that look at what a run leaves."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import pytest

from aitrain.config import RunConfig
from aitrain.dist.ranks import Ranks
from aitrain.models.assets import resolve
from aitrain.recipe import compose
from aitrain.trainer.fit import fit
from aitrain.trainer.run_directory import RunDirectory

Compose = Callable[..., RunConfig]


@dataclass(frozen=True)
class Ended:
    """A run that is done."""

    directory: RunDirectory
    code: int
    said: str

    @property
    def config(self) -> RunConfig:
        """The frozen configuration."""
        return self.directory.config()


@pytest.fixture(scope="session")
def verses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with 12 conversations to train on and 5 held out."""
    folder = tmp_path_factory.mktemp("verses")
    shipped = resolve("asset:verses-en-nl")
    for name, count in (("train.jsonl", 12), ("validation.jsonl", 5)):
        lines = (shipped / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:count]), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small(verses: Path) -> Compose:
    """Compose a recipe that trains the tiny model on the verses; words override it."""

    def make(*words: str, recipe: str = "sft_full") -> RunConfig:
        start = [
            "model.path=asset:tiny-llama",
            f"data.path={verses}/train.jsonl",
            f"data.validation_path={verses}/validation.jsonl",
            "data.sequence_tokens=256",
            "optim.lr=3e-3",
            "trainer.max_epochs=null",
            "trainer.max_steps=4",
            "trainer.global_batch_samples=4",
            "trainer.micro_batch_samples=2",
            "trainer.accelerator=cpu",
            "trainer.precision=fp32",
        ]
        return compose(recipe, [*start, *words])

    return make


def run(config: RunConfig) -> Ended:
    """Train in this process."""
    directory = RunDirectory.create(config)
    said = io.StringIO()
    with redirect_stderr(said):
        code = fit(directory, Ranks())
    return Ended(directory, code, said.getvalue())


@pytest.fixture(scope="session")
def trained(small: Compose, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """LoRA, 4 steps, evaluated and kept every 2 of them, exported merged."""
    folder = tmp_path_factory.mktemp("runs")
    words = [
        f"run.dir={folder}/run",
        "evaluate.every_steps=2",
        "evaluate.max_new_tokens=4",
        'evaluate.prompts=["Translate to Dutch: light"]',
        "checkpoint.every_steps=2",
        "schedule=linear",
        "schedule.warmup_steps=1",
        "export.dtype=fp32",
    ]
    return run(small(*words, recipe="sft_lora"))
