"""Make the assets garments and tiny-convnext from Fashion-MNIST (MIT, Zalando SE), which Debian packages.

apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb package
python recipes/assets/make_garments.py package/usr/share/datasets/fashion-mnist recipes/assets

The model is trained on six kinds of garments and never sees the four that the data set has. So what is shown is what
users do: a body that has seen other things, and a few examples of new ones.
"""

from __future__ import annotations

import argparse
import gzip
import io
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import ConvNextConfig, ConvNextForImageClassification
from transformers import ConvNextImageProcessor as Processor

SEEN = ["T-shirt", "trousers", "pullover", "dress", "coat", "", "shirt"]
NEW = {5: "sandal", 7: "sneaker", 8: "bag", 9: "ankle boot"}
TRAIN_EACH, TEST_EACH = 40, 100
EPOCHS, BATCH, PEAK_LR = 4, 128, 2e-3


def read(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images `(N, 28, 28)` and labels `(N,)` in MNIST's format."""
    pixels = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def write(pixels: np.ndarray, labels: np.ndarray, each: int, file: Path) -> None:
    """Write the first images of each new kind as PNG in a Parquet file, in the order they stand in."""
    rows = np.sort(np.concatenate([np.flatnonzero(labels == kind)[:each] for kind in NEW]))
    images = []
    for row in rows:
        content = io.BytesIO()
        Image.fromarray(255 - pixels[row]).save(content, "PNG")  # as a photograph: dark on white
        images.append(content.getvalue())
    table = pa.table({"image": images, "label": [NEW[int(labels[row])] for row in rows]})
    pq.write_table(table, file, compression="none")


def make_model() -> ConvNextForImageClassification:
    """Build the model with random weights."""
    torch.manual_seed(0)
    names = [name for name in SEEN if name]
    return ConvNextForImageClassification(
        ConvNextConfig(
            image_size=28,
            patch_size=2,
            num_stages=3,
            hidden_sizes=[32, 64, 96],
            depths=[1, 1, 2],
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
        )
    )


def main() -> None:
    """Read the folder of Fashion-MNIST and the target folder from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("to", type=Path)
    arguments = parser.parse_args()
    (pixels, labels), (test_pixels, test_labels) = read(arguments.source, "train"), read(arguments.source, "t10k")
    garments, folder = arguments.to / "garments", arguments.to / "tiny-convnext"
    garments.mkdir(exist_ok=True)
    write(pixels, labels, TRAIN_EACH, garments / "train.parquet")
    write(test_pixels, test_labels, TEST_EACH, garments / "test.parquet")
    processor = Processor(size={"shortest_edge": 28}, crop_pct=1.0, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    numbers = {kind: at for at, kind in enumerate(kind for kind, name in enumerate(SEEN) if name)}

    def known(images: np.ndarray, kinds: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        rows = np.isin(kinds, list(numbers))
        values = torch.from_numpy((255 - images[rows]).astype(np.float32) / 255 * 2 - 1)[:, None].expand(-1, 3, -1, -1)
        return values, torch.tensor([numbers[int(kind)] for kind in kinds[rows]])

    images, kinds = known(pixels, labels)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.05)
    steps, step = EPOCHS * (len(images) // BATCH), 0
    print(f"{model.num_parameters()} parameters, {len(images)} images, {steps} steps")
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(BATCH)[: len(images) // BATCH]:
            rate = PEAK_LR * min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * step / steps)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = images[rows]
            flipped = torch.rand(len(rows), generator=torch.Generator().manual_seed(step)) < 0.5
            batch = torch.where(flipped[:, None, None, None], batch.flip(3), batch)
            loss = torch.nn.functional.cross_entropy(model(pixel_values=batch).logits, kinds[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % 100 == 0:
                print(f"step {step} loss {loss.item():.4f}", flush=True)
    with torch.no_grad():
        held, right = known(test_pixels, test_labels)
        found = torch.cat([model(pixel_values=part).logits.argmax(1) for part in held.split(500)])
        print(f"accuracy on the test images of the seen kinds: {(found == right).double().mean():.4f}")
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    main()
