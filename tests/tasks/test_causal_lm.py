"""The training step against numbers worked out by hand and against a whole forward pass of the model."""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from aitrain.config import RunConfig
from aitrain.config.adapter import Adapter, Lora, NoAdapter
from aitrain.config.data import Records
from aitrain.config.logger import Jsonl
from aitrain.config.model import Model
from aitrain.config.optim import AdamW
from aitrain.config.schedule import Constant
from aitrain.config.strategy import Ddp
from aitrain.config.task import Sft
from aitrain.config.trainer import Trainer
from aitrain.data.token_samples import collate
from aitrain.models.load import Located, locate
from aitrain.tasks.causal_lm import CausalLM
from aitrain.tasks.task import Measured
from aitrain.trainer.module import Module

VOCABULARY = 4


class Guesses(nn.Module):
    """A model whose logits are its table's row of the input token: every loss can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        # probabilities of the next token after token 0, 1, 2, 3
        table = torch.tensor([[1, 1, 1, 1], [1, 2, 1, 4], [8, 1, 1, 6], [1, 1, 5, 1]], dtype=torch.float32)
        self.table = nn.Parameter((table / table.sum(1, keepdim=True)).log())

    def forward(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.table[input_ids][:, logits_to_keep])


def config(adapter: Adapter | None = None, **trainer: Any) -> RunConfig:
    return RunConfig(
        task=Sft(),
        model=Model(path="asset:tiny-llama"),
        data=Records(path="none.jsonl"),
        adapter=adapter or NoAdapter(),
        optim=AdamW(lr=1e-3, weight_decay=0.1),
        schedule=Constant(),
        strategy=Ddp(),
        logger=Jsonl(),
        trainer=Trainer(**trainer),
    )


@cache
def located() -> Located:
    return locate(Model(path="asset:tiny-llama"))


def make_task(model: nn.Module, world: int = 1, accumulation: int = 1, **trainer: Any) -> Module:
    made = Module(CausalLM(config(**trainer), "cpu", located()), world, accumulation)
    made.model = model
    return made


class Samples:
    """As much of a token set as `collate` needs."""

    def __init__(self, *samples: tuple[list[int], list[bool]]) -> None:
        self.samples = samples

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        ids, trained = self.samples[index]
        return np.array(ids), np.array(trained)


def batch(*samples: tuple[list[int], list[bool]], rows: int = 0, total: float = 1.0) -> dict[str, Any]:
    """Put samples into the batch that the loader makes, padded with token 3."""
    tokens: Any = Samples(*samples)
    whole = collate(tokens, np.arange(len(samples)), max(rows, len(samples)), pad_token=3)
    return {**whole, "global_weight": total}


# after 0 comes 1 (1/4, trained), after 1 comes 3 (1/2, not trained), after 3 comes 2 (5/8, trained)
FIRST = ([0, 1, 3, 2], [False, True, False, True])
# after 2 comes 0 (1/2, trained)
SECOND = ([2, 0], [False, True])
LOSS_SUM = math.log(4) + math.log(8 / 5) + math.log(2)


@pytest.mark.parametrize(("world", "accumulation", "total"), [(1, 1, 3), (2, 1, 7), (2, 4, 10), (1, 8, 3)])
def test_step_is_the_share_of_the_global_mean(world: int, accumulation: int, total: int) -> None:
    task = make_task(Guesses(), world, accumulation)
    value = task.training_step(batch(FIRST, SECOND, total=total), 0)
    # Lightning divides by the accumulation and a strategy averages over the ranks
    assert value.item() / world / accumulation == pytest.approx(LOSS_SUM / total, rel=1e-6)


def test_gradients_of_micro_batches_add_up_to_those_of_the_whole() -> None:
    """Two ranks with two micro-batches each, unequal in trained tokens, one of them without a sample."""
    whole = make_task(Guesses())
    whole.training_step(batch(FIRST, SECOND, FIRST, total=5), 0).backward()
    model = Guesses()
    part = make_task(model, world=2, accumulation=2)
    for samples in [(FIRST,), (SECOND,), (FIRST,), ()]:
        (part.training_step(batch(*samples, rows=1, total=5), 0) / 2 / 2).backward()
    assert isinstance(whole.model, Guesses) and model.table.grad is not None
    torch.testing.assert_close(model.table.grad, whole.model.table.grad)


def test_sum_of_losses_is_kept_for_the_log() -> None:
    task = make_task(Guesses())
    task.training_step(batch(FIRST, total=2), 0)
    task.training_step(batch(SECOND, total=1), 1)
    assert task.loss_sum is not None and not task.loss_sum.requires_grad
    assert task.loss_sum.item() == pytest.approx(LOSS_SUM, rel=1e-6)


def test_validation_sums() -> None:
    # first guesses: after 0 all tie (token 0), after 3 token 2 (right), after 2 token 0 (right)
    found = make_task(Guesses()).validation_step(batch(FIRST, SECOND), 0).sums
    assert found.dtype is torch.float64
    assert found.tolist() == pytest.approx([LOSS_SUM, 3.0, 2.0], rel=1e-6)


def test_means_of_sums() -> None:
    task = make_task(Guesses()).task
    found = task.metrics(Measured(torch.tensor([6.0, 4.0, 3.0], dtype=torch.float64)))
    assert found == {"loss": 1.5, "perplexity": math.exp(1.5), "token_accuracy": 0.75}
    assert task.sentence(found) == "loss 1.5000, perplexity 4.48, token accuracy 75.0 %"
    # a perplexity beyond all numbers is the largest
    assert math.isfinite(task.metrics(Measured(torch.tensor([1e9, 1.0, 0.0])))["perplexity"])


def test_flops_per_token() -> None:
    weights = located().facts.parameters
    assert weights is not None
    assert CausalLM(config(), "cpu", located()).flops_per_unit() == 6 * weights
    assert CausalLM(config(Lora()), "cpu", located()).flops_per_unit() == 4 * weights


def test_a_batch_without_any_trained_token_adds_nothing() -> None:
    task = make_task(Guesses())
    nothing = batch(([0, 1, 2], [False] * 3), rows=2, total=5)
    assert task.validation_step(nothing, 0).sums.tolist() == [0.0, 0.0, 0.0]
    value = task.training_step(nothing, 0)
    assert value.item() == 0.0
    value.backward()
    assert isinstance(task.model, Guesses) and task.model.table.grad is not None
    assert torch.equal(task.model.table.grad, torch.zeros(4, 4)), "every rank must take part, with gradients of zero"


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=17, **sizes)).eval()


SAMPLES = [
    ([5, 6, 7, 8, 9, 1], [False, False, True, True, False, True]),
    ([5, 2, 3], [False, False, True]),
    ([4, 4, 4, 4], [True, False, False, False]),  # its first token is predicted by nothing
]


def test_trained_logits_equal_those_of_the_whole_forward_pass() -> None:
    model = llama()
    logits, targets = CausalLM(config(), "cpu", located()).trained_logits(model, batch(*SAMPLES))
    assert logits.shape[1] < 6, "positions whose next token nobody trains need no logits"
    found = []
    for row, (ids, trained) in enumerate(SAMPLES):
        whole = model(input_ids=torch.tensor([ids])).logits[0]  # alone, without padding
        expected = [(position, ids[position + 1]) for position in range(len(ids) - 1) if trained[position + 1]]
        counted = (targets[row] != -100).nonzero().flatten()
        assert targets[row, counted].tolist() == [target for _, target in expected]
        for at, (position, _) in zip(counted, expected, strict=True):
            torch.testing.assert_close(logits[row, at], whole[position], rtol=1e-5, atol=1e-6)
        found.append(len(expected))
    assert found == [3, 1, 0]


def test_loss_equals_transformers_own() -> None:
    model, whole = llama(), batch(*SAMPLES, total=4)
    expected = model(input_ids=whole["input_ids"], labels=whole["labels"]).loss  # the mean over the 4 trained tokens
    assert make_task(model).training_step(whole, 0).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_llama_batch_without_any_trained_token() -> None:
    model = llama()
    value = make_task(model).training_step(batch(([5, 6, 7], [False] * 3), rows=2, total=9), 0)
    value.backward()
    assert value.item() == 0.0
    assert all(p.grad is not None and torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


@pytest.mark.parametrize("on", [True, False])
def test_activation_checkpointing_changes_no_gradient(on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    task = Module(CausalLM(config(activation_checkpointing=on), "cpu", located()), 1, 1)
    monkeypatch.setattr(task.task, "build", lambda: model)
    task._trainer = SimpleNamespace(strategy=SimpleNamespace())  # type: ignore[assignment]
    task.configure_model()
    assert model.is_gradient_checkpointing is on
    model.train()
    task.training_step(batch(*SAMPLES, total=4), 0).backward()
    plain = llama().train()
    labels = batch(*SAMPLES)
    logits = plain(input_ids=labels["input_ids"]).logits[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), labels["labels"][:, 1:].flatten(), ignore_index=-100).backward()
    for (name, mine), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-7, msg=name)


def test_optimizer_is_the_recipes() -> None:
    optimizer = make_task(Guesses()).configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
