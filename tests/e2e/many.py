"""Run several frozen runs one after the other in this rank: imports and process group are paid once.

Called as `python tests/e2e/many.py [--mutant NAME] RUN_DIR ...` by every rank. A mutant puts a known fault back into
the product, so that a test can show that it would be seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def mean_per_micro_batch() -> None:
    """Normalise by the micro-batch's own trained tokens, as a mean of means does."""
    import torch.nn.functional as F

    from aitrain.tasks.causal_lm import CausalLM
    from aitrain.trainer.module import Module

    def training_step(self: Module, batch: dict, batch_idx: int) -> object:
        assert isinstance(self.task, CausalLM)
        logits, labels = self.task.trained_logits(self.built, batch)
        loss_sum = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum")
        self.loss_sum = loss_sum.detach() if self.loss_sum is None else self.loss_sum + loss_sum.detach()
        return loss_sum / (labels != -100).sum().clamp(min=1)

    Module.training_step = training_step  # type: ignore[method-assign,assignment]


def double_division() -> None:
    """Let DeepSpeed divide the loss by the accumulation count once more, as stock Lightning does."""
    from lightning.pytorch.strategies import DeepSpeedStrategy

    from aitrain.strategy.deepspeed import DeepSpeedZero

    DeepSpeedZero.backward = DeepSpeedStrategy.backward  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], None]] = {
    "mean_per_micro_batch": mean_per_micro_batch,
    "double_division": double_division,
}


def main(words: list[str]) -> int:
    """Run the run directories named on the command line."""
    if words[0] == "--mutant":
        MUTANTS[words[1]]()
        words = words[2:]
    from aitrain.dist.group import Group
    from aitrain.dist.ranks import detect
    from aitrain.trainer.fit import fit
    from aitrain.trainer.run_directory import RunDirectory

    ranks = detect()
    group = Group(ranks, "cpu")
    codes = [fit(RunDirectory.open(Path(word)), ranks, group) for word in words]
    group.close()
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
