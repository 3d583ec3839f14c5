"""The table of models: sizes are read from what is here, memory is in proportion."""

from __future__ import annotations

from aitrain.models.catalogue import HEAD, KNOWN, rows


def test_models_that_are_here_are_looked_at() -> None:
    found = {row[0]: dict(zip(HEAD, row, strict=True)) for row in rows()}
    tiny = found["asset:tiny-llama"]
    assert tiny["context"] == "512" and tiny["template"] == "its own" and tiny["where"] == "here"
    assert tiny["parameters"] == "1.0 M" and tiny["memory full"] == "below 0.1 GB" and tiny["licence"] == "Apache-2.0"
    eight = found["Qwen/Qwen3-8B"]
    assert eight["memory full"] == "131.2 GB" and eight["memory LoRA"] == "41.0 GB" and eight["where"] == "hub"
    assert len({model.name for model in KNOWN}) == len(KNOWN)


def test_only_those_that_are_here() -> None:
    assert {row[-1] for row in rows(only_here=True)} == {"here"}
