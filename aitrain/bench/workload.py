"""The workload of every provider: starting weights, real verses as conversations, and the same samples tokenised."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from aitrain.bench.job import Job
from aitrain.config.data import Records
from aitrain.config.model import Model
from aitrain.config.task import Sft
from aitrain.data.prepare import Files, prepare
from aitrain.data.token_samples import IGNORED, pad_token_id
from aitrain.errors import AitrainError, DataError
from aitrain.io import write_text
from aitrain.models import assets
from aitrain.models.load import load_tokenizer, locate
from aitrain.models.quiet import quiet

VERSES = "asset:verses-en-nl/train.jsonl"
LONGEST_VERSE = 512
"""`data.sequence_tokens` where the verses stay as they are."""

RANDOM_MODELS: dict[str, dict[str, int]] = {
    "llama-tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "llama-15m": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6},
    "llama-460m": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "vocab_size": 32768,
    },
}
"""Llama models with random weights, created on demand, with the tokenizer of `asset:tiny-llama`."""


@dataclass(frozen=True)
class Request:
    """What the user asked to measure."""

    model: str
    """Name in `RANDOM_MODELS`, a Hugging Face folder, a GGUF file or `asset:NAME`."""

    steps: int
    """Optimizer steps per process, those of the warm-up included."""

    sequence_tokens: int | None
    """Verses are joined to conversations of nearly so many tokens; None = one verse per sample."""

    micro_batch: int
    """Sequences per micro-batch."""

    accumulation: int
    """Micro-batches per optimizer step."""

    precision: str
    """`fp32` or `bf16`."""

    device: str
    """`cpu` or `cuda`."""


def build_job(request: Request, folder: Path) -> Job:
    """Write weights, conversations and samples into a folder.

    Args:
        request: What to measure.
        folder: An empty folder.

    Raises:
        AitrainError: The model cannot be used, or the data does not fit it.
    """
    random = request.model in RANDOM_MODELS
    path = str(_random_model(request, folder / "model")) if random else request.model
    model = locate(Model(path=path))
    tokenizer = load_tokenizer(model)
    needed = request.steps * request.micro_batch * request.accumulation
    records = folder / "conversations.jsonl"
    conversations = islice(_conversations(request.sequence_tokens, tokenizer), needed)
    write_text(records, "".join(json.dumps({"messages": turns}, ensure_ascii=False) + "\n" for turns in conversations))
    longest = request.sequence_tokens or LONGEST_VERSE
    data = Records(path=str(records), sequence_tokens=longest)
    tokens = prepare(data, Sft(), tokenizer, folder / "prepared", 0, Files.of(records)).train
    if len(tokens) != needed:
        raise DataError(f"{records}: {len(tokens)} samples came out of {needed} conversations")
    samples = []
    for ids, trained in (tokens[row] for row in range(needed)):
        labels = [int(token) if mark else IGNORED for token, mark in zip(ids, trained, strict=True)]
        samples.append({"input_ids": [int(token) for token in ids], "labels": labels})
    write_text(folder / "samples.json", json.dumps(samples))
    return Job(
        model=str(model.folder),
        records=str(records),
        samples=str(folder / "samples.json"),
        sequence_tokens=longest,
        steps=request.steps,
        micro_batch=request.micro_batch,
        accumulation=request.accumulation,
        precision=request.precision,
        device=request.device,
        pad_token=pad_token_id(tokenizer),
    )


def step_tokens(job: Job) -> list[int]:
    """Return the tokens of each step's global batch, padding not counted.

    Args:
        job: What is trained.
    """
    lengths = [len(sample["input_ids"]) for sample in json.loads(Path(job.samples).read_text(encoding="utf-8"))]
    return [sum(lengths[first : first + job.global_batch]) for first in range(0, len(lengths), job.global_batch)]


def _random_model(request: Request, folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(locate(Model(path="asset:tiny-llama")))
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), **RANDOM_MODELS[request.model]}
    longest = max(request.sequence_tokens or 0, LONGEST_VERSE)
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,
        max_position_embeddings=longest,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with quiet():
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _conversations(sequence_tokens: int | None, tokenizer: Any) -> Iterator[list[dict[str, str]]]:
    """Yield an endless stream of conversations: each verse, or as many verses in a row as fit."""
    lines = assets.resolve(VERSES).read_text(encoding="utf-8").splitlines()
    verses: list[list[dict[str, str]]] = [json.loads(line)["messages"] for line in lines]
    if sequence_tokens is None:
        yield from cycle(verses)
        return

    def length(turns: list[dict[str, str]]) -> int:
        return len(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))

    first = 0
    while True:
        turns: list[dict[str, str]] = []
        for verse in islice(cycle(verses), first, None):
            if length(turns + verse) > sequence_tokens:
                break
            turns = turns + verse
        if not turns:
            raise AitrainError(
                f"--sequence-tokens {sequence_tokens} is shorter than a verse of {length(verses[first])} tokens: "
                "write 256 or more"
            )
        yield turns
        first = (first + len(turns) // 2) % len(verses)
