"""Losses are those of transformers' own head, metrics those of scikit-learn; wrong data names file and line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from aitrain.config import RunConfig
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.errors import DataError
from aitrain.recipe import compose
from aitrain.tasks.class_metrics import fitted_temperature, multi_label_metrics, single_label_metrics
from aitrain.tasks.classify_text import ClassifyText
from aitrain.tasks.registry import task_of
from aitrain.tasks.task import Measured

from .tiny_bert import make_bert

ALONE = Group(Ranks(), "cpu")
ROWS = [("pump leak", "a"), ("invoice paid", "b"), ("door", "c"), ("water pump", "a"), ("late paid", "b")] * 3 + [
    ("the door", "c")
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("bert"))


def config(bert: Path, folder: Path, rows: Any = ROWS, *words: str, name: str = "train") -> RunConfig:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    start = [f"model.path={bert}", f"data.path={path}", "data.sequence_tokens=16", "trainer.max_steps=1"]
    start.append("data.max_overlap=1")  # the rows stand there three times
    return compose("classify_text", [*start, "trainer.accelerator=cpu", "trainer.precision=fp32", *words])


def made(config: RunConfig) -> tuple[ClassifyText, Any]:
    task = task_of(config)
    assert isinstance(task, ClassifyText)
    return task, task.samples(ALONE)


def test_the_loss_is_that_of_transformers_own_head(bert: Path, tmp_path: Path) -> None:
    task, splits = made(config(bert, tmp_path))
    assert task.classes == ["a", "b", "c"]
    model: Any = task.build().eval()
    batch = splits.train.collate(np.arange(5), 7)  # two rows without a text
    given = {key: batch[key][:5] for key in ("input_ids", "attention_mask", "labels")}
    theirs = model(**given).loss
    ours = task.loss_sum(model, batch) / splits.train.weights[:5].sum()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_class_weights_are_those_of_torch(bert: Path, tmp_path: Path) -> None:
    task, splits = made(config(bert, tmp_path, ROWS, "task.class_weights=balanced"))
    model: Any = task.build().eval()
    batch = splits.train.collate(np.arange(9), 9)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = splits.train.columns.single("labels")
    expected = len(labels) / (3 * np.bincount(labels))
    weight = torch.tensor(expected, dtype=torch.float32)
    theirs = torch.nn.functional.cross_entropy(logits, batch["labels"], weight=weight)
    ours = task.loss_sum(model, batch) / splits.train.weights[:9].sum()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_several_labels(bert: Path, tmp_path: Path) -> None:
    rows = [(text, [label, "x"] if at % 2 else [label]) for at, (text, label) in enumerate(ROWS)]
    task, splits = made(config(bert, tmp_path, rows, "task.multi_label=true"))
    assert task.classes == ["a", "b", "c", "x"]
    model: Any = task.build().eval()
    batch = splits.train.collate(np.arange(4), 6)
    given = {key: batch[key][:4] for key in ("input_ids", "attention_mask", "labels")}
    torch.testing.assert_close(task.loss_sum(model, batch) / 4, model(**given).loss, rtol=1e-5, atol=1e-6)


def test_metrics_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 5), torch.randint(5, (200,))
    found, temperature = single_label_metrics(logits, labels)
    guesses = logits.argmax(1)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, guesses))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(labels, guesses, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, guesses))
    assert temperature > 5, "random logits deserve no belief"
    assert found["calibration_error_scaled"] < found["calibration_error"]
    several = (torch.rand(50, 4) > 0.5).long()
    said = torch.randn(50, 4)
    both = multi_label_metrics(said, several)
    assert both["f1_micro"] == pytest.approx(sk.f1_score(several, said > 0, average="micro"))
    assert both["f1_macro"] == pytest.approx(sk.f1_score(several, said > 0, average="macro"))
    assert both["exact_match"] == pytest.approx(sk.accuracy_score(several, said > 0))


def test_the_temperature_is_the_one_with_the_smallest_loss() -> None:
    torch.manual_seed(1)
    truth = torch.randn(4000, 3)
    labels = torch.distributions.Categorical(logits=truth).sample()
    assert fitted_temperature(truth * 4, labels) == pytest.approx(4, rel=0.15)
    assert fitted_temperature(truth / 3, labels) == pytest.approx(1 / 3, rel=0.15)


def test_the_commonest_class_is_the_baseline(bert: Path, tmp_path: Path) -> None:
    task, splits = made(config(bert, tmp_path, [*ROWS, *[("pump", "a")] * 9]))
    (name, found), *_ = task.baselines(splits).items()
    held = splits.validation.columns.single("labels")
    assert name == "always 'a'" and found["accuracy"] == pytest.approx((held == 0).mean())


def test_every_class_is_on_both_sides(bert: Path, tmp_path: Path) -> None:
    _, splits = made(config(bert, tmp_path, ROWS, "data.validation_share=0.2"))
    assert set(splits.validation.columns.single("labels")) == set(splits.train.columns.single("labels")) == {0, 1, 2}
    assert len(splits.train) + len(splits.validation) == len(ROWS)


def test_measures_of_batches_are_those_of_the_whole(bert: Path, tmp_path: Path) -> None:
    task, splits = made(config(bert, tmp_path, ROWS, "task.class_weights=balanced"))
    model = task.build().eval()
    with torch.no_grad():
        whole = task.measure(model, splits.train.collate(np.arange(10), 10))
        parts = [task.measure(model, splits.train.collate(np.arange(at, min(at + 4, 10)), 4)) for at in (0, 4, 8)]
    rows = torch.cat([part.rows[: min(4, 10 - at)] for at, part in zip((0, 4, 8), parts, strict=True)])  # type: ignore[index]
    torch.testing.assert_close(sum(part.sums for part in parts), whole.sums)
    together = task.metrics(Measured(whole.sums, rows))
    assert together == pytest.approx(task.metrics(whole), rel=1e-4)


WRONG: dict[str, tuple[list[dict[str, Any]], str]] = {
    "no text": (
        [{"label": "a"}],
        "train.jsonl:1: no column or key 'text' (here: 'label'): write data.text_field=COLUMN",
    ),
    "no label": (
        [{"text": "x"}],
        "train.jsonl:1: no column or key 'label' (here: 'text'): write data.label_field=COLUMN",
    ),
    "empty label": ([{"text": "x", "label": ""}], "train.jsonl:1: 'label' is '', not one label"),
    "a list": ([{"text": "x", "label": ["a"]}], "task.multi_label=true where a text may have several"),
    "empty text": ([{"text": " ", "label": "a"}], "train.jsonl:1: 'text' is empty"),
    "one example": (
        [{"text": "x", "label": "a"}, {"text": "y", "label": "a"}, {"text": "z", "label": "b"}],
        "train.jsonl:3: class 'b' has one example",
    ),
    "one class": ([{"text": "x", "label": "a"}] * 3, "only one class ('a')"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_data_names_file_and_line(bert: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, says = WRONG[kind]
    made_config = config(bert, tmp_path)
    Path(made_config.data.path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        task_of(made_config).samples(ALONE)
    assert says in str(caught.value)


def test_a_label_that_training_lacks(bert: Path, tmp_path: Path) -> None:
    other = config(bert, tmp_path, [("pump", "a"), ("door", "new")], name="test").data.path
    with pytest.raises(
        DataError, match=r"test.jsonl:2: label 'new' is not among those of the training data \('a', 'b', 'c'\)"
    ):
        task_of(config(bert, tmp_path, ROWS, f"data.validation_path={other}")).samples(ALONE)


def test_other_data_is_measured_by_the_classes_of_the_run(bert: Path, tmp_path: Path) -> None:
    task, _ = made(config(bert, tmp_path))
    other = task_of(config(bert, tmp_path, [("door", "c"), ("late", "b")], name="other"))
    other.recall(task.learned())
    splits = other.samples(ALONE)
    assert isinstance(other, ClassifyText) and other.classes == ["a", "b", "c"]
    assert splits.train.columns.single("labels").tolist() == [2, 1]  # type: ignore[attr-defined]
    strange = task_of(config(bert, tmp_path, [("door", "z"), ("late", "b")], name="strange"))
    strange.recall(task.learned())
    with pytest.raises(DataError, match="strange.jsonl:1: label 'z' is not among those of the training data"):
        strange.samples(ALONE)


def test_an_adapter_leaves_the_body_and_trains_the_head(bert: Path, tmp_path: Path) -> None:
    from aitrain.tasks.task import ExportJob

    task, splits = made(config(bert, tmp_path, ROWS, "adapter=lora", "adapter.rank=2"))
    task.dry_build()
    model: Any = task.build()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in trained) and any("classifier" in n for n in trained)
    with torch.no_grad():
        for weight in trained.values():
            weight += 0.1
    task.export(trained, ExportJob(tmp_path / "out", "run"))
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/model").eval()
    batch = splits.train.collate(np.arange(3), 3)
    given = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(plain(**given).logits, model.eval()(**given).logits, rtol=1e-4, atol=1e-5)


def test_the_exported_folder_has_the_same_outputs_in_plain_transformers(bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from aitrain.tasks.task import ExportJob

    task, splits = made(config(bert, tmp_path))
    torch.manual_seed(3)
    model: Any = task.build().eval()
    task.temperature = 1.5
    task.export(dict(model.named_parameters()), ExportJob(tmp_path / "out", "run"))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/model")
    given = tokenizer(["pump leak", "invoice"], padding=True, return_tensors="pt")
    ours = task.padded(task.tokenise(["pump leak", "invoice"]), 2)
    with torch.no_grad():
        expected = model(input_ids=ours["input_ids"], attention_mask=ours["attention_mask"]).logits
        torch.testing.assert_close(plain(**given).logits, expected, rtol=1e-5, atol=1e-6)
    assert plain.config.id2label == {0: "a", 1: "b", 2: "c"} and plain.config.probability_temperature == 1.5
    with torch.no_grad():
        said = list(task.predictions(plain, Path(task.config.data.path), torch.device("cpu")))
    assert len(said) == len(ROWS) and set(said[0]) == {"text", "label", "probabilities"}
    assert sum(said[0]["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    task.data = replace(task.data, columns={"text": "Tekst", "label": "Afdeling"})
    (tmp_path / "new.csv").write_text(f"Tekst\n{said[0]['text']}\n")
    with torch.no_grad():
        assert list(task.predictions(plain, tmp_path / "new.csv", torch.device("cpu")))[0]["label"] == said[0]["label"]


def test_a_late_evaluation_gives_the_export_its_temperature(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed in its last evaluation: the checkpoint holds the temperature of the one before."""
    from aitrain.trainer.evaluation import measure_late
    from aitrain.trainer.export import Wanted, export
    from aitrain.trainer.fit import fit
    from aitrain.trainer.run_directory import RunDirectory

    words = [f"run.dir={tmp_path}/run", "data.validation_share=0.3", "trainer.max_steps=2", "trainer.max_epochs=null"]
    words += ["optim.lr=0.1", "schedule=constant", "trainer.global_batch_samples=4", "export.at_end=false"]
    directory = RunDirectory.create(config(bert, tmp_path, ROWS, *words))
    with monkeypatch.context() as patch:
        patch.setattr(ClassifyText, "learned", lambda task: {"classes": task.classes, "temperature": 1.25})
        assert fit(directory, Ranks()) == 0
    events = directory.events_file.read_text().splitlines()
    last = max(at for at, line in enumerate(events) if json.loads(line)["event"] == "evaluated")
    directory.events_file.write_text("\n".join(events[:last]) + "\n")
    measure_late(directory, 2, lambda: False)
    (late,) = directory.all_of("learned")
    export(directory.path, tmp_path / "out", Wanted())
    found = json.loads((tmp_path / "out/model/config.json").read_text())["probability_temperature"]
    assert found == late["values"]["temperature"] != 1.25
