"""Images from folders and tables; losses of transformers' own head; running statistics stay; wrong data is named."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk

from aitrain.config import RunConfig
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.errors import DataError, ModelError, RecipeError
from aitrain.models.frozen_norm import freeze_statistics
from aitrain.recipe import compose
from aitrain.tasks.classify_image import ClassifyImage
from aitrain.tasks.registry import task_of
from aitrain.tasks.task import ExportJob

from .tiny_images import CLASSES, SIDE, image, make_folder, make_resnet, make_vit

ALONE = Group(Ranks(), "cpu")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_resnet(tmp_path_factory.mktemp("resnet"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("images") / "shapes")


def config(model: Path, data: Path, *words: str) -> RunConfig:
    start = [f"model.path={model}", f"data.path={data}", "trainer.max_steps=1", "trainer.accelerator=cpu"]
    return compose("classify_image", [*start, "trainer.precision=fp32", "data.validation_share=null", *words])


def made(config: RunConfig) -> tuple[ClassifyImage, Any]:
    task = task_of(config)
    assert isinstance(task, ClassifyImage)
    return task, task.samples(ALONE)


def table(folder: Path, rows: list[tuple[str, str]]) -> Path:
    """A semicolon-free CSV beside the images it names."""
    path = folder / "labels.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("image", "label"), *rows])
    return path


def png(made: Image.Image) -> bytes:
    content = io.BytesIO()
    made.save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_the_loss_is_that_of_transformers_own_head(kind: str, shapes: Path, request: pytest.FixtureRequest) -> None:
    task, splits = made(config(request.getfixturevalue(kind), shapes))
    assert task.classes == list(CLASSES) and len(splits.train) == 18
    model: Any = task.build().eval()
    batch = splits.train.collate(np.arange(5), 7)  # two rows without an image
    theirs = model(pixel_values=batch["pixel_values"][:5], labels=batch["labels"][:5]).loss
    torch.testing.assert_close(task.loss_sum(model, batch) / 5, theirs, rtol=1e-5, atol=1e-6)


def test_pixels_are_those_of_transformers_processor(vit: Path, shapes: Path) -> None:
    from transformers import AutoImageProcessor

    task, splits = made(config(vit, shapes))
    rows = np.array([0, 7, 17])
    files = sorted(shapes.rglob("*.png"))
    plain = AutoImageProcessor.from_pretrained(vit, backend="pil")
    expected = plain([Image.open(files[row]) for row in rows], return_tensors="pt")["pixel_values"]
    found = splits.train.collate(rows, 3)["pixel_values"]
    assert found.shape == (3, 3, SIDE, SIDE)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert splits.train.place(7) == files[7].relative_to(shapes).as_posix()


def test_a_folder_a_table_and_parquet_give_the_same_samples(vit: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "shapes", each=3)
    files = sorted(folder.rglob("*.png"))
    rows = [(file.relative_to(tmp_path).as_posix(), file.parent.name) for file in files]
    content = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    pq.write_table(pa.table({"image": content, "label": [kind for _, kind in rows]}), tmp_path / "a.parquet")
    pq.write_table(
        pa.table({"image": [file.read_bytes() for file in files], "label": [kind for _, kind in rows]}),
        tmp_path / "b.parquet",
    )
    batches = []
    for data in (folder, table(tmp_path, rows), tmp_path / "a.parquet", tmp_path / "b.parquet"):
        _, splits = made(config(vit, data))
        batches.append(splits.train.collate(np.arange(9), 9))
    for other in batches[1:]:
        assert torch.equal(other["pixel_values"], batches[0]["pixel_values"])
        assert torch.equal(other["labels"], batches[0]["labels"])


def test_a_changed_image_is_prepared_anew(vit: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "shapes", each=2)
    listed = table(tmp_path, [(f"shapes/{kind}/{n:03d}.png", kind) for kind in CLASSES for n in range(2)])
    before = [made(config(vit, data))[1] for data in (folder, listed)]
    image("disc", 99).save(folder / "bar" / "000.png")
    after = [made(config(vit, data))[1] for data in (folder, listed)]
    for old, new in zip(before, after, strict=True):
        assert old.fingerprint != new.fingerprint
        first = [splits.train.collate(np.array([0]), 1)["pixel_values"] for splits in (old, new)]
        assert not torch.equal(*first)


def test_photographs_are_turned_as_the_camera_was_held(vit: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "shapes", each=2)
    upright, exif = image("bar", 0), Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "bar" / "000.png", exif=exif)
    upright.save(folder / "bar" / "001.png")
    _, splits = made(config(vit, folder, "data.max_overlap=1"))
    pixels = splits.train.collate(np.array([0, 1]), 2)["pixel_values"]
    assert torch.equal(pixels[0], pixels[1])


def test_running_statistics_are_those_of_the_base_model(resnet: Path, shapes: Path, tmp_path: Path) -> None:
    task, splits = made(config(resnet, shapes))
    model: Any = task.build().train()
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    assert before
    batch = splits.train.collate(np.arange(8), 8)
    whole = task.loss_sum(model, batch)
    parts = [task.loss_sum(model, splits.train.collate(np.arange(at, at + 2), 2)) for at in range(0, 8, 2)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-5)
    whole.backward()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    scale = next(weight for name, weight in model.named_parameters() if "normalization.weight" in name)
    assert scale.grad is not None and scale.grad.abs().sum() > 0, "scale and shift are trained"
    # a checkpoint holds buffers as well, and the export is loaded by plain transformers with the same outputs
    kept = {name: value + 0.01 for name, value in model.state_dict().items() if "num_batches" not in name}
    task.export(kept, ExportJob(tmp_path / "out", "run"))
    from transformers import AutoModelForImageClassification

    plain: Any = AutoModelForImageClassification.from_pretrained(tmp_path / "out/model").eval()
    ours: Any = task.trained_model(kept)
    given = batch["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(plain(given).logits, ours(given).logits, rtol=1e-5, atol=1e-5)
    assert plain.config.id2label == dict(enumerate(CLASSES))


def test_other_normalisation_is_left_alone(vit: Path, shapes: Path) -> None:
    task, _ = made(config(vit, shapes))
    assert freeze_statistics(task.build()) == 0


def test_a_linear_probe_trains_the_last_layer_alone(vit: Path, shapes: Path) -> None:
    task, _ = made(config(vit, shapes, "task.linear_probe=true"))
    trained = [name for name, weight in task.build().named_parameters() if weight.requires_grad]
    assert trained == ["classifier.weight", "classifier.bias"]
    with pytest.raises(RecipeError, match="adapter=lora trains more than the last layer"):
        config(vit, shapes, "task.linear_probe=true", "adapter=lora")


def test_an_adapter_trains_its_matrices_and_the_head(vit: Path, shapes: Path) -> None:
    task, _ = made(config(vit, shapes, "adapter=lora", "adapter.rank=2"))
    task.dry_build()
    trained = [name for name, weight in task.build().named_parameters() if weight.requires_grad]
    assert all("lora_" in name or "classifier" in name for name in trained)
    assert any("classifier" in name for name in trained) and any("lora_" in name for name in trained)


def test_balanced_accuracy_and_its_baseline_are_scikit_learns(vit: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "shapes", each=4)
    for number in range(4, 12):
        image("disc", number).save(folder / "disc" / f"{number:03d}.png")
    task, splits = made(config(vit, folder, "data.validation_share=0.3"))
    assert task.primary.name == "balanced_accuracy"
    model = task.build().eval()
    held = splits.validation
    with torch.no_grad():
        found = task.measure(model, held.collate(np.arange(len(held)), len(held)))
    logits, labels = found.rows[:, :3], found.rows[:, 3].long()  # type: ignore[index]
    metrics = task.metrics(found)
    assert metrics["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, logits.argmax(1)))
    ((name, trivial),) = task.baselines(splits).items()
    assert name == "always 'disc'" and trivial["balanced_accuracy"] == pytest.approx(1 / 3)
    assert task.picture(found, tmp_path / "picture.svg") and "disc" in (tmp_path / "picture.svg").read_text()


def test_several_labels_need_a_table(vit: Path, shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder, where an image has one label"):
        made(config(vit, shapes, "task.multi_label=true"))
    rows = [
        (f"{kind}/{n:03d}.png", "|".join([kind] * (n > 0) + ["small"] * (n % 2))) for kind in CLASSES for n in (0, 1, 2)
    ]
    task, splits = made(config(vit, table(shapes, rows), "task.multi_label=true"))
    assert task.classes == ["bar", "disc", "frame", "small"] and task.primary.name == "f1_macro"
    model: Any = task.build().eval()
    batch = splits.train.collate(np.arange(9), 9)
    assert batch["labels"].sum(1).tolist() == [0, 2, 1] * 3
    theirs = model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss
    torch.testing.assert_close(task.loss_sum(model, batch) / 9, theirs, rtol=1e-5, atol=1e-6)


def test_predictions_of_an_image_a_folder_and_a_table(vit: Path, shapes: Path, tmp_path: Path) -> None:
    task, _ = made(config(vit, shapes))
    model, device = task.build().eval(), torch.device("cpu")
    single = tmp_path / "new.jpg"
    image("disc", 50).save(single)
    listed = tmp_path / "ask.jsonl"
    listed.write_text(json.dumps({"image": "new.jpg"}) + "\n")
    with torch.no_grad():
        one, again = (list(task.predictions(model, path, device)) for path in (single, listed))
        all_of_them = list(task.predictions(model, shapes, device))
        task.data = replace(task.data, columns={"image": "foto", "label": "soort"})
        listed.write_text(json.dumps({"foto": "new.jpg"}) + "\n")
        assert list(task.predictions(model, listed, device)) == again
    assert one[0] | {"image": ""} == again[0] | {"image": ""} and one[0]["image"] == "new.jpg"
    assert set(one[0]["probabilities"]) == set(CLASSES) and sum(one[0]["probabilities"].values()) == pytest.approx(
        1, abs=1e-4
    )
    assert [each["image"] for each in all_of_them] == sorted(
        f.relative_to(shapes).as_posix() for f in shapes.rglob("*.png")
    )
    (tmp_path / "torn.png").write_bytes(png(image("bar", 0))[:60])
    with pytest.raises(DataError, match=r"torn.png: the image cannot be opened"):
        list(task.predictions(model, tmp_path / "torn.png", device))


def torn(folder: Path) -> None:
    (folder / "bar" / "001.png").write_bytes(png(image("bar", 1))[:80])


def no_image(folder: Path) -> None:
    (folder / "disc" / "000.png").write_text("not an image")


def one_example(folder: Path) -> None:
    (folder / "odd").mkdir()
    image("bar", 7).save(folder / "odd" / "7.png")


def outside(folder: Path) -> None:
    image("bar", 7).save(folder / "lost.png")


WRONG = {
    torn: "bar/001.png: the image cannot be opened (",
    no_image: "disc/000.png: the image cannot be opened (no image that can be read): replace it, or remove it",
    one_example: "odd/7.png: class 'odd' has one example",
    outside: "lost.png is not in the folder of a class: move it into one",
}


def test_wrong_folders_name_every_file_at_once(vit: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "shapes", each=3)
    for spoil in WRONG:
        spoil(folder)
    with pytest.raises(DataError) as caught:
        made(config(vit, folder))
    for says in WRONG.values():
        assert says in str(caught.value)


def test_wrong_tables_name_the_line(vit: Path, shapes: Path) -> None:
    rows = [("bar/000.png", "bar"), ("bar/nowhere.png", "bar"), ("disc/000.png", ""), ("", "disc")]
    with pytest.raises(DataError) as caught:
        made(config(vit, table(shapes, rows)))
    said = str(caught.value)
    assert "labels.csv:3: image bar/nowhere.png does not exist" in said
    assert "labels.csv:4: 'label' is '', not one label" in said
    assert "labels.csv:5: 'image' is neither the path of an image nor an image" in said
    path = shapes / "labels.csv"
    path.write_text("file,label\na.png,x\n")
    with pytest.raises(
        DataError,
        match=r"labels.csv:2: no column or key 'image' \(here: 'file', 'label'\): write data.columns.image=file",
    ):
        made(config(vit, path))
    path.unlink()


def test_folders_that_are_no_classes(vit: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "all" / "train", each=2)
    make_folder(tmp_path / "all" / "val", each=2)
    with pytest.raises(DataError, match=r"holds train, val, which are not classes: write data.path=.*/all/train and"):
        made(config(vit, tmp_path / "all"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no subfolders: put the images of each class into a folder"):
        made(config(vit, tmp_path / "empty"))


def test_a_class_that_training_lacks(vit: Path, shapes: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", each=2)
    (other / "bar").rename(other / "barr")
    with pytest.raises(DataError, match=r"barr/000.png: label 'barr' is not among those of the training data"):
        made(config(vit, shapes, f"data.validation_path={other}", "data.max_overlap=1"))


def test_held_out_images_that_are_trained_on(vit: Path, shapes: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", each=2)
    with pytest.raises(DataError, match=r"6 of 6 held-out samples are also training samples, .* data.max_overlap=1"):
        made(config(vit, shapes, f"data.validation_path={other}"))
    _, splits = made(config(vit, shapes, f"data.validation_path={other}", "data.max_overlap=1"))
    assert "6 held out, 6 of them also in the training data" in splits.report.text()


def test_the_account_says_what_was_left_aside(vit: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "shapes", each=2)
    (folder / "bar" / "notes.txt").write_text("x")
    (folder / ".DS_Store").write_text("x")
    _, splits = made(config(vit, folder))
    said = splits.report.text()
    assert "6 images, kept as 16 x 16 pixels" in said and "not images, skipped: 1 files, first bar/notes.txt" in said


def test_a_model_without_its_processor(vit: Path, shapes: Path, tmp_path: Path) -> None:
    from shutil import copytree

    bare = copytree(vit, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"has no preprocessor_config.json, which says how images are prepared"):
        made(config(bare, shapes))
    (bare / "preprocessor_config.json").write_text("{no JSON")
    with pytest.raises(ModelError, match="its image processor cannot be loaded"):
        made(config(bare, shapes))
