"""The independent loop: plain PyTorch and transformers, one sample at a time, no aitrain code."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Plan:
    """What the loop shall do."""

    steps: int
    batch: int
    optimizer: str
    lr: float
    clip: float | None
    weight_decay: float = 0.0
    epochs: float | None = None


def encode(tokenizer, messages: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """Write a ChatML conversation piece by piece; the assistant's content and its end of turn are trained."""
    ids: list[int] = []
    trained: list[bool] = []
    for message in messages:
        answers = message["role"] == "assistant"
        head = f"<|im_start|>{message['role']}\n"
        pieces = [(head, False), (message["content"] + "<|im_end|>", answers), ("\n", False)]
        for text, mark in pieces:
            piece = tokenizer(text, add_special_tokens=False).input_ids
            ids += piece
            trained += [mark] * len(piece)
    return ids, trained


def train(model_folder: Path, data: Path, plan: Plan) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Train in file order and return losses, gradient norms before clipping, and the final weights."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model.train()
    samples = [encode(tokenizer, json.loads(line)["messages"]) for line in data.read_text().splitlines()]
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if plan.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=plan.lr)
    else:
        optimizer = torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.95), eps=1e-8)
    total = plan.steps * plan.batch if plan.epochs is None else round(plan.epochs * len(samples))
    losses, norms = [], []
    for step in range(plan.steps):
        numbers = range(step * plan.batch, min((step + 1) * plan.batch, total))
        batch = [samples[number % len(samples)] for number in numbers]
        count = sum(sum(trained[1:]) for _, trained in batch)
        loss = 0.0
        for ids, trained in batch:
            tokens = torch.tensor([ids])
            logits = model(input_ids=tokens).logits[0, :-1]
            token_losses = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
            share = (token_losses * torch.tensor(trained[1:])).sum() / count
            share.backward()
            loss += share.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip if plan.clip is not None else math.inf)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        norms.append(norm.item())
    return losses, norms, {name: p.detach().clone() for name, p in model.named_parameters()}
