"""What `aitrain check` shows of the data is what will be trained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aitrain.errors import DataError
from aitrain.trainer.inspection import audit

from .conftest import Compose


def test_counts_and_samples(small: Compose, verses: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit(small(), show=2)
    said = capsys.readouterr().out
    assert "4 steps of 4 sequences: 16 samples, 1.33 epochs" in said
    assert "sample 1, its trained tokens in [[ ]]:" in said and "sample 2," not in said
    records = [json.loads(line)["messages"] for line in (verses / "train.jsonl").read_text().splitlines()[:2]]
    marked = re.findall(r"\[\[(\S.*?)\]\]", said, re.DOTALL)
    assert marked == [messages[-1]["content"] + "<|im_end|>" for messages in records]


def test_no_more_samples_than_there_are(small: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    audit(small("trainer.max_steps=null", "trainer.max_epochs=1"), show=99)
    said = capsys.readouterr().out
    assert "3 steps of 4 sequences: 12 samples, 1.00 epochs" in said
    assert "sample 11," in said and "sample 12," not in said


def test_refused_data(small: Compose, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        audit(small(f"data.path={tmp_path}/empty.jsonl"), show=0)
