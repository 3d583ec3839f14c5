"""An exported run in plain transformers (and peft) has the loss that the run measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from aitrain.errors import CheckpointError, RecipeError
from aitrain.models.assets import resolve
from aitrain.trainer.export import Wanted, export

from .conftest import Ended


def plain_loss(model: torch.nn.Module, tokenizer, data: Path) -> float:
    """Return the mean loss of the answers and their ends, one conversation at a time, without aitrain code."""
    total, count = 0.0, 0
    for line in data.read_text(encoding="utf-8").splitlines():
        ids: list[int] = []
        trained: list[bool] = []
        for message in json.loads(line)["messages"]:
            answer = message["role"] == "assistant"
            head = f"<|im_start|>{message['role']}\n"
            for text, mark in ((head, False), (message["content"] + "<|im_end|>", answer), ("\n", False)):
                piece = tokenizer(text, add_special_tokens=False).input_ids
                ids, trained = ids + piece, trained + [mark] * len(piece)
        tokens = torch.tensor([ids])
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
        total += losses[torch.tensor(trained[1:])].sum().item()
        count += sum(trained[1:])
    return total / count


def measured(run: Ended, step: int) -> float:
    return json.loads(run.directory.metrics_file.read_text().splitlines()[step - 1])["val_loss"]


def test_the_folder_written_at_the_end(trained: Ended, verses: Path) -> None:
    folder = trained.directory.export / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    loss = plain_loss(model, AutoTokenizer.from_pretrained(folder), verses / "validation.jsonl")
    assert loss == pytest.approx(measured(trained, 4), rel=1e-5)
    assert abs(loss - measured(trained, 2)) > 1e-4, "another step would be seen"


def test_an_adapter_of_an_earlier_step(trained: Ended, verses: Path, tmp_path: Path) -> None:
    export(trained.directory.path, tmp_path / "out", Wanted(merge=False, checkpoint="2"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["adapter"]
    base = resolve("asset:tiny-llama")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "out/adapter"
    ).eval()
    loss = plain_loss(model, AutoTokenizer.from_pretrained(base), verses / "validation.jsonl")
    assert loss == pytest.approx(measured(trained, 2), rel=1e-4)


def test_the_card_tells_step_and_losses(trained: Ended) -> None:
    card = (trained.directory.export / "model/README.md").read_text()
    events = [json.loads(line) for line in trained.directory.events_file.read_text().splitlines()]
    before = next(event["val_loss"] for event in events if event["event"] == "evaluated")
    for number in (f"{before:.4f}", f"{measured(trained, 4):.4f}"):
        assert number in card


def test_nothing_is_overwritten(trained: Ended, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(RecipeError, match=f"--to {tmp_path} exists already"):
        export(trained.directory.path, tmp_path, Wanted())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_step_that_is_not_there(trained: Ended, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3: choose from \[2, 4\]"):
        export(trained.directory.path, tmp_path / "out", Wanted(checkpoint="3"))
    assert list(tmp_path.iterdir()) == []
