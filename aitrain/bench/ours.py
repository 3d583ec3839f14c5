"""aitrain in the benchmark: the recipe `sft_full` through the public command.

Run as `python -m aitrain.bench.ours JOB ACCOUNT`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from aitrain import __version__
from aitrain.bench.interleaved import StepClock
from aitrain.bench.job import Account, Job
from aitrain.bench.memory import peak_memory_gb
from aitrain.errors import AitrainError
from aitrain.trainer.run_directory import RunDirectory
from aitrain.trainer.start import train


def overrides(job: Job, run: Path) -> list[str]:
    """Return the job as words of the recipe `sft_full`.

    Args:
        job: What to train.
        run: The run directory to make.
    """
    return [
        f"model.path='{job.model}'",
        f"data.path='{job.records}'",
        f"data.sequence_tokens={job.sequence_tokens}",
        "data.shuffle=false",
        "schedule=constant",
        "schedule.warmup_steps=0",
        f"optim.lr={job.lr}",
        f"optim.betas={list(job.betas)}",
        f"optim.eps={job.eps}",
        f"optim.max_grad_norm={job.max_grad_norm}",
        "optim.weight_decay=0",
        f"trainer.max_steps={job.steps}",
        "trainer.max_epochs=null",
        "data.validation_samples=null",
        "evaluate.answered_samples=0",
        f"trainer.global_batch_samples={job.global_batch}",
        f"trainer.micro_batch_samples={job.micro_batch}",
        f"trainer.precision={job.precision}",
        f"trainer.accelerator={job.device}",
        "trainer.devices=1",
        "export.at_end=false",
        f"run.dir='{run}'",
    ]


def measure(job: Job) -> Account:
    """Train, and note when each step's record is written: the time between two of them is the full cost of a step.

    `step_time_s` in `metrics.jsonl` would leave out what happens after it is measured, like writing the record itself.

    Args:
        job: What to train.

    Raises:
        AitrainError: The run did not end well.
    """
    clock = StepClock()
    write_record = RunDirectory.metrics

    def write_and_note(directory: RunDirectory, record: dict[str, Any]) -> None:
        write_record(directory, record)
        clock.end_step()

    RunDirectory.metrics = write_and_note  # type: ignore[method-assign, assignment]
    try:
        with tempfile.TemporaryDirectory(prefix="aitrain-bench-run-") as folder:
            run = Path(folder, "run")
            if code := train("sft_full", overrides(job, run)):
                raise AitrainError(f"aitrain bench: the training ended with exit code {code}; see its output above")
            records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    finally:
        RunDirectory.metrics = write_record  # type: ignore[method-assign, assignment]
    return Account(
        begins_s=clock.begins,
        ends_s=clock.ends,
        losses=[record["loss"] for record in records],
        gradient_norms=[record["grad_norm"] for record in records],
        peak_memory_gb=peak_memory_gb(job.device),
        versions={"aitrain": __version__, "torch": torch.__version__, "lightning": version("lightning")},
        threads=torch.get_num_threads(),
        own_step_s=[record["step_time_s"] for record in records],
    )


if __name__ == "__main__":
    measure(Job.read(Path(sys.argv[1]))).write(Path(sys.argv[2]))
