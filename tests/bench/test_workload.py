"""The work of a benchmark: real verses of the asked length, and samples equal to what aitrain trains on."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from aitrain.bench.workload import Request, build_job, step_tokens


def request(sequence_tokens: int | None) -> Request:
    return Request("llama-tiny", 3, sequence_tokens, micro_batch=2, accumulation=2, precision="fp32", device="cpu")


@pytest.mark.parametrize("sequence_tokens", [None, 256])
def test_samples_are_the_conversations_tokenised_with_only_answers_trained(
    tmp_path: Path, sequence_tokens: int | None
) -> None:
    job = build_job(request(sequence_tokens), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    conversations = [json.loads(line)["messages"] for line in Path(job.records).read_text().splitlines()]
    samples = json.loads(Path(job.samples).read_text())
    assert len(samples) == len(conversations) == 3 * 4
    for turns, sample in zip(conversations, samples, strict=True):
        assert sample["input_ids"] == tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        trained = tokenizer.decode([label for label in sample["labels"] if label != -100])
        answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        assert trained.split("<|im_end|>")[:-1] == answers
    lengths = [len(sample["input_ids"]) for sample in samples]
    assert step_tokens(job) == [sum(lengths[:4]), sum(lengths[4:8]), sum(lengths[8:])]
    if sequence_tokens is not None:
        assert max(lengths) <= sequence_tokens
        assert sum(lengths) / len(lengths) > 0.7 * sequence_tokens
