"""A model alone, and the base model of a run, are measured as a run's model is before its first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from aitrain.errors import AitrainError
from aitrain.trainer.base_model import evaluate_base, evaluate_model

from .conftest import Ended


def test_the_base_model_has_the_loss_of_step_0(trained: Ended, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_base(trained.directory.path, None)
    out = capsys.readouterr().out
    before = trained.directory.all_of("evaluated")[0]["val_loss"]
    assert f"loss {before:.4f}," in out and out.startswith("asset:tiny-llama, not trained here")


def test_a_model_alone(verses: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = str(verses / "validation.jsonl")
    words = ["data.sequence_tokens=256", "trainer.accelerator=cpu", "evaluate.answered_samples=1"]
    evaluate_model("asset:tiny-llama", held_out, "sft_full", [*words, "evaluate.max_new_tokens=4"])
    out = capsys.readouterr().out
    assert "perplexity" in out and "  target  " in out and "  answer  " in out
    copy = verses / "held out, 'once' (1).csv"  # as a browser names a second download
    copy.write_text("prompt,completion\nIn the beginning,God created\n", encoding="utf-8")
    evaluate_model("asset:tiny-llama", str(copy), "sft_full", ["trainer.accelerator=cpu", words[0]])
    assert "perplexity" in capsys.readouterr().out
    with pytest.raises(AitrainError, match="data.path=other.csv has no effect here, because --data names the records"):
        evaluate_model("asset:tiny-llama", held_out, "sft_full", ["data.path=other.csv"])
    with pytest.raises(AitrainError, match="does not exist"):
        evaluate_model("asset:tiny-llama", "none.csv", "sft_full", words)
