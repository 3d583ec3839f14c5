"""What is exported is what was trained, under every strategy: same loss, same answers, same end, in plain transformers.

The held-out loss and the answers of the run are compared with those of the exported folder, without code of aitrain.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import CONTEXT_TOKENS, make_data, make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from aitrain.dist.processes import run_ranks
from aitrain.recipe import compose
from aitrain.trainer.run_directory import RunDirectory

HERE = Path(__file__).parent
PROMPTS = ["the of", "you that it"]
KINDS = {
    "full": [],
    "lora": ["adapter=lora"],
    "some": ["adapter=lora", "adapter.target_modules=[q_proj,down_proj]"],
    "embedding": ["adapter=lora", "adapter.target_modules=[embed_tokens,q_proj]"],
    "head": ["adapter=lora", "adapter.target_modules=[lm_head,q_proj]"],
    "both": ["adapter=lora", "adapter.target_modules=[embed_tokens,lm_head]"],
    "whole_embedding": ["adapter=lora", "adapter.modules_to_save=[embed_tokens]"],
    "whole_head": ["adapter=lora", "adapter.modules_to_save=[lm_head]"],
    "dora": ["adapter=dora"],
}
STRATEGIES = ["ddp", "fsdp", "deepspeed_zero3"]
EVERY = [(strategy, tied, kind) for strategy in STRATEGIES for tied in (True, False) for kind in KINDS]
DAILY = [
    (strategy, tied, kind)
    for strategy, tied, kind in EVERY
    if (strategy == "ddp" and (tied or kind in ("full", "head", "both", "whole_head")))
    or (tied and kind in ("full", "embedding", "whole_embedding"))
]


class Exports:
    """Trains what is asked for in one launch of two ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = {tied: make_model(folder / f"model-{tied}", tied=tied) for tied in (True, False)}
        self.data = make_data(folder / "train.jsonl")
        self.held_out = make_data(folder / "held.jsonl", samples=5, seed=7)

    def make(self, strategy: str, tied: bool, kind: str) -> RunDirectory:
        words = [
            f"model.path={self.models[tied]}",
            f"data.path={self.data}",
            f"data.validation_path={self.held_out}",
            "data.max_overlap=1",
            f"data.sequence_tokens={CONTEXT_TOKENS}",
            "trainer.accelerator=cpu",
            "trainer.precision=fp32",
            "trainer.max_steps=3",
            "trainer.global_batch_samples=4",
            "trainer.micro_batch_samples=2",
            "schedule=constant",
            "optim=sgd",  # hides no error of scale, and moves the weights visibly
            "optim.lr=0.5",
            "evaluate.max_new_tokens=12",
            f"evaluate.prompts={json.dumps(PROMPTS)}",
            f"strategy={strategy}",
            f"run.dir={self.folder}/{strategy}-{tied}-{kind}",
        ]
        return RunDirectory.create(compose("sft_full", [*words, "evaluate.answered_samples=0", *KINDS[kind]]))

    def train(self, cases: list[tuple[str, bool, str]]) -> dict[tuple[str, bool, str], Path]:
        made = {case: self.make(*case) for case in cases}
        command = [sys.executable, str(HERE / "many.py"), *(str(directory.path) for directory in made.values())]
        assert run_ranks(command, 2) == 0
        return {case: directory.path for case, directory in made.items()}


@pytest.fixture(scope="session")
def daily(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool, str], Path]:
    return Exports(tmp_path_factory.mktemp("exports")).train(DAILY)


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool, str], Path]:
    return Exports(tmp_path_factory.mktemp("exports")).train([case for case in EVERY if case not in DAILY])


def plain_loss(model: torch.nn.Module, tokenizer, data: Path) -> float:
    """Mean loss of the answers and their ends, written out for the tiny model's template."""
    total, count = 0.0, 0
    for line in data.read_text().splitlines():
        ids: list[int] = []
        labels: list[int] = []
        for message in json.loads(line)["messages"]:
            parts = (
                (f"<|im_start|>{message['role']}\n", False),
                (message["content"] + "<|im_end|>", True),
                ("\n", False),
            )
            for text, answered in parts:
                piece = tokenizer(text, add_special_tokens=False).input_ids
                ids += piece
                labels += piece if answered and message["role"] == "assistant" else [-100] * len(piece)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
        targets = torch.tensor(labels[1:])
        total += torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").item()
        count += int((targets != -100).sum())
    return total / count


def plain_answers(model, tokenizer) -> list[str]:
    found = []
    for prompt in PROMPTS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        out = model.generate(ids, max_new_tokens=12, do_sample=False)
        found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return found


def assert_exported(path: Path, case: tuple[str, bool, str]) -> None:
    _, tied, kind = case
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    before = next(event["val_loss"] for event in events if event["event"] == "evaluated")
    measured = records[-1]["val_loss"]
    assert abs(measured - before) > 1e-3, "training must have changed something"
    answers = [entry["answer"] for event in events if event["event"] == "answers" for entry in event["answers"]][-2:]
    tokenizer = AutoTokenizer.from_pretrained(path / "export/model")
    model, loading = AutoModelForCausalLM.from_pretrained(path / "export/model", output_loading_info=True)
    assert not any(loading.values()), loading
    assert plain_loss(model.eval(), tokenizer, path.parent / "held.jsonl") == pytest.approx(measured, rel=1e-5)
    assert plain_answers(model, tokenizer) == answers
    untied = kind in ("embedding", "head", "both", "whole_embedding", "whole_head")
    assert model.config.tie_word_embeddings == (tied and not untied)
    if kind != "full":
        base = AutoModelForCausalLM.from_pretrained(path.parent / f"model-{tied}")
        adapted = PeftModel.from_pretrained(base, path / "export/adapter").eval()
        assert plain_loss(adapted, tokenizer, path.parent / "held.jsonl") == pytest.approx(measured, rel=1e-5)


@pytest.mark.parametrize("case", DAILY, ids=lambda case: "-".join(map(str, case)))
def test_the_export_is_what_was_trained(daily: dict[tuple[str, bool, str], Path], case: tuple[str, bool, str]) -> None:
    assert_exported(daily[case], case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in EVERY if case not in DAILY], ids=lambda c: "-".join(map(str, c)))
def test_the_export_is_what_was_trained_in_the_rest(
    others: dict[tuple[str, bool, str], Path], case: tuple[str, bool, str]
) -> None:
    assert_exported(others[case], case)
