"""Tiny image models, and images that tell their class, for tests."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIDE = 16
CLASSES = ("bar", "disc", "frame")


def make_vit(folder: Path, dropout: float = 0.0) -> Path:
    """Write a ViT of two layers with random weights."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=SIDE,
        patch_size=4,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return _save(ViTForImageClassification(config), folder)


def make_resnet(folder: Path) -> Path:
    """Write a ResNet of two stages whose batch normalisation has seen some images."""
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = ResNetForImageClassification(config).train()
    for _ in range(20):
        model(pixel_values=torch.randn(16, 3, SIDE, SIDE) + 0.5)
    return _save(model.eval(), folder)


def _save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def image(kind: str, seed: int) -> Image.Image:
    """Draw one of three shapes at a place and in a colour of its own, 24 x 20 pixels."""
    draw = random.Random(f"{kind} {seed}")
    made = Image.new("RGB", (24, 20), (draw.randint(0, 60), draw.randint(0, 60), draw.randint(0, 60)))
    x, y = draw.randint(1, 8), draw.randint(1, 6)
    colour = (draw.randint(140, 255), draw.randint(140, 255), draw.randint(140, 255))
    pen = ImageDraw.Draw(made)
    if kind == "bar":
        pen.rectangle([x, y + 4, x + 13, y + 6], fill=colour)
    elif kind == "disc":
        pen.ellipse([x, y, x + 11, y + 11], fill=colour)
    else:
        pen.rectangle([x, y, x + 11, y + 11], outline=colour)
    return made


def make_folder(folder: Path, each: int = 6) -> Path:
    """Write some images of each class into a folder of its own."""
    for kind in CLASSES:
        (folder / kind).mkdir(parents=True)
        for number in range(each):
            image(kind, number).save(folder / kind / f"{number:03d}.png")
    return folder
