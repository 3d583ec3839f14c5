"""`check` gives every refusal of `train` first, in the same words, with the same exit code, without loading weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny import CONTEXT_TOKENS

from aitrain import cli

Break = Callable[[Path, Path], list[str]]


def fewer_rows(model: Path, data: Path) -> list[str]:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] - 39}))
    return []


def other_kind(model: Path, data: Path) -> list[str]:
    config = json.loads((model / "config.json").read_text())
    changed = {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "head_dim": 16}
    (model / "config.json").write_text(json.dumps(config | changed))
    return []


def broken(text: str) -> Break:
    def change(model: Path, data: Path) -> list[str]:
        data.write_text(data.read_text() + text)
        return []

    return change


def words(*more: str) -> Break:
    return lambda model, data: list(more)


def no_template(model: Path, data: Path) -> list[str]:
    (model / "chat_template.jinja").unlink()
    return []


def strange_template(model: Path, data: Path) -> list[str]:
    (model / "chat_template.jinja").write_text("{{ raise_exception('not like this') }}")
    return []


def no_config(model: Path, data: Path) -> list[str]:
    (model / "config.json").unlink()
    return []


CASES: dict[str, tuple[Break, int, str]] = {
    "a tokenizer longer than the embedding": (fewer_rows, 2, "but the embedding only"),
    "an attention that the model lacks": (other_kind, 2, "write model.attention=eager"),
    "a group set to nothing": (words("evaluate=null"), 2, "evaluate is a group of keys"),
    "a key of another tool": (words("learning_rate=1"), 2, "did you mean optim.lr?"),
    "a target that is no layer": (words("adapter=lora", "adapter.target_modules=[q]"), 2, "matches no layer"),
    "a warm-up longer than the run": (words("schedule.warmup_steps=9"), 2, "longer than the run of 2 steps"),
    "a prompt beyond the context": (words(f"evaluate.prompts=['{'a b ' * 99}']"), 2, "shorten one of them"),
    "an answer beyond the context": (
        words("evaluate.prompts=[a]", "evaluate.max_new_tokens=999"),
        2,
        "the model's context",
    ),
    "a template that refuses": (strange_template, 3, "rejects this conversation: not like this"),
    "no template": (no_template, 2, "model.chat_template=NAME"),
    "no model": (no_config, 2, "has no config.json"),
    "a broken line": (broken("{\n"), 3, "broken JSON"),
    "a record without an answer": (broken('{"prompt": "a", "completion": ""}\n'), 3, "is empty"),
    "a field of another tool": (
        broken('{"prompt": "a", "completion": "b", "images": [1]}\n'),
        3,
        "ignore_fields=[images]",
    ),
    "a record that is too long": (broken(json.dumps({"prompt": "a " * 999, "completion": "b"}) + "\n"), 3, "too_long"),
    "everything held out": (words("data.validation_samples=13"), 3, "leaves nothing to train on"),
    "held-out data that is trained on": (lambda m, d: [f"data.validation_path={d}"], 3, "data.max_overlap=1"),
    "a batch that does not divide": (words("trainer.devices=3"), 2, "is not a multiple of 3 devices"),
    "a context that is too short": (words("data.sequence_tokens=4096"), 2, "longer than the model's context"),
    "a run directory that is taken": (words("run.dir=taken"), 2, "run.dir=taken exists already"),
    "a GPU that is not there": (words("trainer.accelerator=cuda"), 2, "trainer.accelerator=cuda, but"),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "taken").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path


def given(place: Path, model: Path, data: Path) -> tuple[Path, Path, list[str]]:
    model = Path(shutil.copytree(model, place / "model"))
    data = Path(shutil.copy(data, place / "data.jsonl"))
    common = [f"model.path={model}", f"data.path={data}", f"data.sequence_tokens={CONTEXT_TOKENS}"]
    common += ["trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.max_steps=2"]
    return model, data, [*common, "trainer.global_batch_samples=4", "trainer.micro_batch_samples=2"]


@pytest.mark.parametrize("case", CASES)
def test_check_and_train_refuse_alike(
    case: str, place: Path, tiny_model: Path, tiny_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, code, says = CASES[case]
    model, data, common = given(place, tiny_model, tiny_data)
    overrides = [*common, *change(model, data)]
    told = []
    for command in ("check", "train"):
        assert cli.main([command, "sft_full", *overrides]) == code
        printed = capfd.readouterr()
        assert " found" not in "".join(printed.out.splitlines()[-1:]) and "Traceback" not in printed.err
        told.append(printed.err)
    assert says in told[0] and told[1].endswith(told[0])
    assert not any(place.glob("runs/*"))


def test_what_check_finds_right_trains(
    place: Path, tiny_model: Path, tiny_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, _, common = given(place, tiny_model, tiny_data)
    assert cli.main(["check", "sft_full", *common]) == 0
    assert capfd.readouterr().out.endswith("\nNo errors found; see the warning above.\n"), "a few steps teach little"
    assert cli.main(["train", "sft_full", *common]) == 0


def test_check_loads_no_weights(
    place: Path, tiny_model: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import aitrain.models.load as load

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(load, "_from_files", loaded)
    _, _, common = given(place, tiny_model, tiny_data)
    assert cli.main(["check", "sft_full", *common]) == 0


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_sweep_into_one_directory(
    place: Path, tiny_model: Path, tiny_data: Path, command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    _, _, common = given(place, tiny_model, tiny_data)
    assert cli.main([command, "sft_full", *common, "-m", "run.dir=one", "seed=1,2"]) == 2
    assert (
        "run.dir=one is the same for several of the 2 runs" in capfd.readouterr().err and not (place / "one").exists()
    )
