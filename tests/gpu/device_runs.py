"""Starts real runs through the command line, for the GPU tests.

`AITRAIN_TEST_DEVICE=cpu` sends every test to the CPU that makes sense there: so they can be tried without a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEVICE = os.environ.get("AITRAIN_TEST_DEVICE", "cuda")
FP32 = ("trainer.precision=fp32", "trainer.max_steps=5")
"""What runs that are compared have in common."""

SMALL = [
    "model.path=asset:tiny-llama",
    "data.path=asset:verses-en-nl/train.jsonl",
    "data.sequence_tokens=256",
    "optim.lr=1e-3",
    "trainer.max_epochs=null",
    "trainer.global_batch_samples=8",
    "trainer.micro_batch_samples=4",
    "trainer.devices=1",
    "export.at_end=false",
]
"""One device, the shipped tiny Llama on the shipped verses, two micro-batches per step."""


@dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    path: Path
    """Its directory."""

    code: int
    """Exit code."""

    said: str
    """Everything it printed."""

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    @property
    def losses(self) -> list[float]:
        """Loss of each step; fails with what the run said when it did not end well."""
        assert self.code == 0, self.said
        return [record["loss"] for record in self.records]


def aitrain(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, so that nothing on the device outlives it."""
    return subprocess.run([sys.executable, "-m", "aitrain", *words], capture_output=True, text=True, check=False)


def train(path: Path, *words: str, recipe: str = "sft_full", device: str = DEVICE) -> Ended:
    """Train the shipped tiny Llama on the shipped verses.

    Args:
        path: Run directory to make.
        words: Overrides; later ones win over the small ones of these tests.
        recipe: Name of the recipe.
        device: `cuda` or `cpu`.
    """
    chosen = {word.split("=")[0]: word for word in [*SMALL, f"trainer.accelerator={device}", *words]}
    done = aitrain("train", recipe, *chosen.values(), f"run.dir={path}")
    return Ended(path, done.returncode, done.stdout + done.stderr)
