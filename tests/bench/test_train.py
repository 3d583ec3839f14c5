"""`aitrain bench train`, run for real at the smallest size: all do the same work, and the account is whole."""

import json
from pathlib import Path

import pytest

from aitrain.bench import train
from aitrain.bench.job import Account
from aitrain.errors import EXIT_GUARD, AitrainError

SMALL = ["--model", "llama-tiny", "--steps", "3", "--warm-up", "1", "--rounds", "1", "--accumulation", "2"]


@pytest.mark.slow
def test_all_providers_have_the_losses_of_the_bare_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*SMALL, "--device", "cpu", "--out", str(tmp_path)]) == 0
    (written,) = tmp_path.iterdir()
    result = json.loads(written.read_text())
    providers = ["bare", "bare, all logits", "aitrain", "trl"]
    assert [row["provider"] for row in result["table"]] == providers
    assert all(row["right"] for row in result["table"]), capsys.readouterr().out
    assert result["cores"] and result["device"] and result["versions"]["trl"] and result["versions"]["python"]
    assert len({*result["threads"].values()}) == 1, "unequal threads are no fair race"
    assert all(len(result["losses"][name]) == 3 for name in providers)
    assert len(result["losses"]["bare"]) == len(set(result["losses"]["bare"])), "every step has its own batch"
    assert "same" in capsys.readouterr().out


def test_a_rival_that_fails_is_told_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    account = Account([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0] * 3, [1.0] * 3, 0.1, {"torch": "0"}, 1)
    account.write(tmp_path / "ready.json")
    copy = """import shutil, sys
from aitrain.bench.interleaved import StepClock
clock = StepClock()
for _ in range(3):
    clock.end_step()
shutil.copy(sys.argv[1], sys.argv[2])
"""
    (tmp_path / "ready_made.py").write_text(copy)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    works = ["ready_made", str(tmp_path / "ready.json"), "{account}"]
    monkeypatch.setattr(train, "COMMANDS", {"bare": works, "aitrain": works, "trl": ["no_such_module"]})
    assert train.main([*SMALL, "--device", "cpu", "--rivals", "trl"]) == 0
    said = capsys.readouterr().out
    assert "trl did not run: exit code 1" in said and "no_such_module" in said

    Account([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.5] * 3, [1.0] * 3, 0.1, {"torch": "0"}, 1).write(
        tmp_path / "other.json"
    )
    other = ["ready_made", str(tmp_path / "other.json"), "{account}"]
    monkeypatch.setattr(train, "COMMANDS", {"bare": works, "aitrain": other})
    assert train.main([*SMALL, "--device", "cpu", "--rivals", ""]) == EXIT_GUARD
    monkeypatch.setattr(train, "COMMANDS", {"bare": works, "aitrain": ["no_such_module"]})
    with pytest.raises(AitrainError, match="aitrain did not run"):
        train.main([*SMALL, "--device", "cpu", "--rivals", ""])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--steps", "3", "--warm-up", "3"], "--warm-up 3 must be less than --steps 3"),
        (["--micro-batch", "0"], "--micro-batch 0 must be at least 1"),
        (["--rivals", "bear"], "--rivals bear is not known: write bare,trl"),
        (["--model", "llama-tiny", "--sequence-tokens", "9", "--device", "cpu"], "write 256 or more"),
    ],
)
def test_wrong_words(words: list[str], sentence: str) -> None:
    with pytest.raises(AitrainError, match=sentence.replace("(", r"\(")):
        train.main(words)
