"""The reference: a training loop in plain PyTorch and transformers, as short as possible.

Nothing of aitrain runs in the step. Run as `python -m aitrain.bench.bare JOB ACCOUNT all|trained`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch.utils.data import DataLoader

from aitrain.bench.interleaved import StepClock
from aitrain.bench.job import Account, Job
from aitrain.bench.memory import peak_memory_gb

IGNORED = -100


def collate(samples: list[dict[str, list[int]]], pad_token: int) -> dict[str, torch.Tensor]:
    """Pad samples on the right to the longest.

    Args:
        samples: `input_ids` and `labels` of each.
        pad_token: Id that fills `input_ids`.

    Returns:
        `input_ids`, `attention_mask`, `targets` (labels one to the left), int64 `(B, L)`, and `kept`, the positions
        that have a target in some row.
    """
    width = max(len(sample["input_ids"]) for sample in samples)

    def rows(name: str, fill: int) -> torch.Tensor:
        return torch.tensor([sample[name] + [fill] * (width - len(sample[name])) for sample in samples])

    targets = F.pad(rows("labels", IGNORED)[:, 1:], (0, 1), value=IGNORED)
    mask = torch.tensor([[1] * len(s["input_ids"]) + [0] * (width - len(s["input_ids"])) for s in samples])
    kept = (targets != IGNORED).any(dim=0).nonzero().flatten()
    return {"input_ids": rows("input_ids", pad_token), "attention_mask": mask, "targets": targets, "kept": kept}


def micro_batch_loss(model: Any, batch: dict[str, torch.Tensor], only_trained: bool) -> torch.Tensor:
    """Return the sum of the losses of a micro-batch.

    Args:
        model: A causal language model.
        batch: From `collate`, on the model's device.
        only_trained: Compute logits only at `kept`, and leave out the attention mask, which right padding under causal
            attention does not need; else all logits with the mask, as most loops do.
    """
    ids, targets = batch["input_ids"], batch["targets"]
    if only_trained:
        targets = targets[:, batch["kept"]]
        logits = model(input_ids=ids, logits_to_keep=batch["kept"], use_cache=False).logits
    else:
        logits = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def train(job: Job, only_trained: bool) -> Account:
    """Train, and measure each step.

    Args:
        job: What to train.
        only_trained: Which of the two loops, see `micro_batch_loss`.
    """
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    model.to(job.device).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=job.lr, betas=job.betas, eps=job.eps, weight_decay=0.0, fused=True)
    samples = json.loads(Path(job.samples).read_text(encoding="utf-8"))
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_size=job.micro_batch,
        collate_fn=lambda rows: collate(rows, job.pad_token),
        pin_memory=job.device == "cuda",
    )
    batches: Iterator[dict[str, torch.Tensor]] = iter(loader)
    bf16 = job.precision == "bf16"
    losses, norms, clock = [], [], StepClock()
    for _ in range(job.steps):
        micro_batches = [next(batches) for _ in range(job.accumulation)]
        trained_tokens = sum(int((batch["targets"] != IGNORED).sum()) for batch in micro_batches)
        total = torch.zeros((), device=job.device)
        for batch in micro_batches:
            batch = {name: value.to(job.device, non_blocking=True) for name, value in batch.items()}
            with torch.autocast(job.device, torch.bfloat16) if bf16 else nullcontext():
                loss = micro_batch_loss(model, batch, only_trained) / trained_tokens
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(parameters, job.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total.item())
        norms.append(norm.item())
        clock.end_step()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    peak = peak_memory_gb(job.device)
    return Account(clock.begins, clock.ends, losses, norms, peak, versions, torch.get_num_threads())


if __name__ == "__main__":
    train(Job.read(Path(sys.argv[1])), only_trained=sys.argv[3] == "trained").write(Path(sys.argv[2]))
