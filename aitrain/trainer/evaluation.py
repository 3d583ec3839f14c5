"""Measuring a model on held-out data and letting it answer prompts, through any strategy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from aitrain.config import RunConfig
from aitrain.config.task import Sft
from aitrain.dist.group import Group
from aitrain.tasks.causal_lm import CausalLM


@dataclass(frozen=True)
class Validation:
    """What was measured on the held-out data.

    Attributes:
        loss: Mean negative log-likelihood over the trained tokens, in nats.
        perplexity: Its exponential.
        token_accuracy: Share of trained tokens that were the model's first guess.
        tokens: Trained tokens measured.
    """

    loss: float
    perplexity: float
    token_accuracy: float
    tokens: int

    @classmethod
    def of_sums(cls, sums: torch.Tensor) -> Validation:
        """Make the means from the sums over all ranks.

        Args:
            sums: `(3,)`: losses, tokens predicted rightly, trained tokens.
        """
        loss_sum, right, tokens = sums.tolist()
        loss = loss_sum / tokens
        return cls(loss, math.exp(min(loss, 700.0)), right / tokens, int(tokens))

    def as_metrics(self) -> dict[str, float]:
        """Return the values under their names in `metrics.jsonl`."""
        return {"val_loss": self.loss, "val_perplexity": self.perplexity, "val_token_accuracy": self.token_accuracy}


@contextmanager
def evaluating(trainer: pl.Trainer) -> Iterator[None]:
    """Switch dropout and gradients off inside the block, in the run's precision.

    Args:
        trainer: A trainer whose strategy is set up.
    """
    model = trainer.strategy.model
    assert model is not None, "the strategy is not set up"
    model.eval()
    try:
        with torch.no_grad(), trainer.strategy.precision_plugin.val_step_context():
            yield
    finally:
        model.train()


def validate(trainer: pl.Trainer, loader: DataLoader[dict[str, Any]], group: Group) -> Validation:
    """Measure the model on held-out data; every rank calls this.

    Args:
        trainer: A trainer whose strategy is set up.
        loader: This rank's share of the held-out batches.
        group: The ranks.
    """
    strategy = trainer.strategy
    sums = torch.zeros(3, dtype=torch.float64, device=strategy.root_device)
    with evaluating(trainer):
        for number, batch in enumerate(loader):
            moved = strategy.batch_to_device(batch, dataloader_idx=0)
            step: Any = strategy.validation_step(moved, number)
            sums += step
    return Validation.of_sums(group.sum(sums))


def answers(trainer: pl.Trainer, task: CausalLM, tokenizer: Any, config: RunConfig) -> list[dict[str, str]]:
    """Let the model go on from the recipe's prompts, taking its first guess at each token.

    Every rank generates the same, because under sharded strategies each token needs all of them.

    Args:
        trainer: A trainer whose strategy is set up.
        task: The model under training.
        tokenizer: The model's tokenizer.
        config: The run.

    Returns:
        One `{"prompt", "answer"}` per prompt.
    """
    if not config.evaluate.prompts:
        return []
    with evaluating(trainer):
        return generate(task.model, tokenizer, config, task.device)


def generate(model: Any, tokenizer: Any, config: RunConfig, device: torch.device) -> list[dict[str, str]]:
    """Let a Hugging Face model go on from the recipe's prompts, taking its first guess at each token.

    Args:
        model: A model with `generate`.
        tokenizer: Its tokenizer.
        config: The run.
        device: Where the model is.

    Returns:
        One `{"prompt", "answer"}` per prompt.
    """
    found = []
    for prompt in config.evaluate.prompts:
        text = _as_text(prompt, tokenizer, config) if isinstance(config.task, Sft) else prompt
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=not isinstance(config.task, Sft)).input_ids.to(device)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=config.evaluate.max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            synced_gpus=False,
        )
        found.append({"prompt": prompt, "answer": tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()})
    return found


def _as_text(prompt: str, tokenizer: Any, config: RunConfig) -> str:
    assert isinstance(config.task, Sft)
    system = [{"role": "system", "content": config.task.system_prompt}] if config.task.system_prompt else []
    messages = [*system, {"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text
