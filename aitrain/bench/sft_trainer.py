"""TRL's SFTTrainer in the benchmark, set up to do the same work: no shuffle, no packing, same optimizer.

Run as `python -m aitrain.bench.sft_trainer JOB ACCOUNT`; needs the extra `bench`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from trl import SFTConfig, SFTTrainer

from aitrain.bench.interleaved import StepClock
from aitrain.bench.job import Account, Job
from aitrain.bench.memory import peak_memory_gb


class Recorder(transformers.TrainerCallback):
    """Notes the end of each step and what the trainer logs of it."""

    def __init__(self) -> None:
        self.clock = StepClock()
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Note the end of a step: the trainer has read loss and norm from the device by now.

        Args:
            args: Not used.
            state: Not used.
            control: Not used.
            logs: What was measured.
            kwargs: Not used.
        """
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.norms.append(float(logs["grad_norm"]))
            self.clock.end_step()


def settings(job: Job, folder: str) -> SFTConfig:
    """Return the job as TRL's settings.

    Args:
        job: What to train.
        folder: Where it may write.
    """
    return SFTConfig(
        output_dir=folder,
        max_steps=job.steps,
        per_device_train_batch_size=job.micro_batch,
        gradient_accumulation_steps=job.accumulation,
        max_length=None,
        packing=False,
        shuffle_dataset=False,
        train_sampling_strategy="sequential",
        learning_rate=job.lr,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=job.betas[0],
        adam_beta2=job.betas[1],
        adam_epsilon=job.eps,
        weight_decay=0.0,
        max_grad_norm=job.max_grad_norm,
        bf16=job.precision == "bf16",
        use_cpu=job.device == "cpu",
        gradient_checkpointing=False,
        logging_steps=1,
        logging_first_step=True,
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
    )


def measure(job: Job) -> Account:
    """Train, and note the clock at the end of each step.

    Args:
        job: What to train.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(job.model)
    rows = json.loads(Path(job.samples).read_text(encoding="utf-8"))
    recorder = Recorder()
    with tempfile.TemporaryDirectory(prefix="aitrain-bench-trl-") as folder:
        trainer = SFTTrainer(
            model=model,
            args=settings(job, folder),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[recorder],
        )
        trainer.train()
    versions = {name: version(name) for name in ("trl", "torch", "transformers", "accelerate", "datasets")}
    peak = peak_memory_gb(job.device)
    clock, losses, norms = recorder.clock, recorder.losses, recorder.norms
    return Account(clock.begins, clock.ends, losses, norms, peak, versions, torch.get_num_threads())


if __name__ == "__main__":
    measure(Job.read(Path(sys.argv[1]))).write(Path(sys.argv[2]))
