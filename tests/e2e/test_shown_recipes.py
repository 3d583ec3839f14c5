"""Recipes on shipped data, end to end: trained, stopped, resumed, measured, exported, the same in plain libraries."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from recipe_runs import RECIPES, reached, words_of

MARGINS = {
    # about half of what the worst of five seeds is above the better of untrained and trivial: tests/bench/results
    "classify_text": 0.2,
    "classify_image": 0.25,
    "forecast_timeseries": 0.02,  # ahead of gradient boosting, too
    "tag_tokens": 0.3,
    "embeddings": 0.19,
    "preference_dpo": 0.15,
    "reranker": 0.007,
}
DAILY = "classify_image"
"""The recipe that `make test` runs; `make recipes` runs all."""

ROOT = Path(__file__).resolve().parents[2]
THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
"""Per run. Beside another busy worker, a second thread makes every step several times slower."""
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


def aitrain(*words: str, code: int = 0) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": THREADS}
    done = subprocess.run(
        [sys.executable, "-m", "aitrain", *words], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def stopped_and_resumed(recipe: str, folder: Path) -> Path:
    """Train a recipe, stop it by a signal after some steps, and let it go on to its end."""
    run = folder / recipe
    env = {**os.environ, "OMP_NUM_THREADS": THREADS}
    words = [sys.executable, "-m", "aitrain", "train", *words_of(recipe, folder)]
    process = subprocess.Popen(words, env=env, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        metrics = run / "metrics.jsonl"
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= 5:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.1)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "resumed from" in aitrain("resume", str(run))
    return run


def classes(run: Path, said: list[dict[str, Any]]) -> None:
    from transformers import pipeline

    plain = pipeline("text-classification", str(run / "export/model"), device="cpu", top_k=1)
    for each in said:
        (found,) = plain(each["text"])
        found = found[0] if isinstance(found, list) else found
        assert found["label"] == each["label"]


def pictures(run: Path, said: list[dict[str, Any]]) -> None:
    from transformers import pipeline

    plain = pipeline("image-classification", str(run / "export/model"), device="cpu", top_k=1)
    for each in said:
        (found,) = plain(Image.open(run.parent / each["image"]))
        assert found["label"] == each["label"]


def quantiles(run: Path, said: list[dict[str, Any]]) -> None:
    """The exported program, with torch alone, has the quantiles of `predict`."""
    import numpy as np
    import torch

    settings = json.loads((run / "export/model/config.json").read_text())
    program = torch.export.load(run / "export/model/forecaster.pt2").module()
    with open(run.parent / "forecast_timeseries-new.csv") as file:
        rows = list(csv.DictReader(file))
    context, horizon = settings["sizes"]["context"], settings["sizes"]["horizon"]
    past = np.array([float(row["wind"]) for row in rows[:-horizon]], dtype=np.float32)
    hours = np.array([datetime.fromisoformat(f"{row['time']}+00:00").timestamp() for row in rows]) / 3600
    day_of_year = np.floor((hours - hours[0]) / 24)  # the table begins on 1 January
    angles = 2 * np.pi * np.stack([hours / 24, (hours / 24 + 3) / 7, day_of_year / 365.25], 1)
    sun = np.array([[float(row["sun"])] for row in rows])
    known = np.concatenate([sun, np.sin(angles), np.cos(angles)], 1).astype(np.float32)[-context - horizon :]
    given = torch.from_numpy(past[-context:])[None]
    with torch.no_grad():
        found = program(given, torch.ones_like(given), torch.from_numpy(known)[None], torch.tensor([past.std()]))
    ours = [[each[level] for level in ("0.1", "0.5", "0.9")] for each in said if each["series"] == "wind"]
    np.testing.assert_allclose(found[0].numpy(), np.array(ours), rtol=1e-3, atol=1e-3)


def entities(run: Path, said: list[dict[str, Any]]) -> None:
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(run / "export/model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "export/model")
    for each in said:
        given = tokenizer(each["text"], return_tensors="pt", return_offsets_mapping=True)
        offsets = given.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            labels = [model.config.id2label[int(number)] for number in model(**given).logits[0].argmax(1)]
        begins = {entity["start"]: entity["label"] for entity in each["entities"]}
        for (start, end), label in zip(offsets, labels, strict=True):
            for place, kind in begins.items():
                if start <= place < end:
                    assert label[2:] == kind


def vectors(run: Path, said: list[dict[str, Any]]) -> None:
    import numpy as np
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(run / "export/model"), device="cpu")
    found = model.encode([each["query"] for each in said])
    np.testing.assert_allclose(found, np.array([each["embedding"] for each in said]), rtol=1e-4, atol=1e-5)


def answered(run: Path, said: list[dict[str, Any]]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(run / "export/model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "export/model")
    for each in said:
        messages = [{"role": "user", "content": each["prompt"]}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            found = model.generate(**ids, do_sample=False, max_new_tokens=12)[0, ids["input_ids"].shape[1] :]
        text = tokenizer.decode(found, skip_special_tokens=True).strip()
        assert text and each["answer"].startswith(text[: len(text) - 3])


def scores(run: Path, said: list[dict[str, Any]]) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(run / "export/model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "export/model")
    for each in said:
        for text in each["texts"]:
            given = tokenizer(f"{each['query']}\n{text['text']}", return_tensors="pt")
            with torch.no_grad():
                assert model(**given).logits[0, 0].item() == pytest.approx(text["score"], abs=1e-4)


def drawn(folder: Path) -> dict[str, str]:
    """Write the first test image into a file, and return the record that names it."""
    table = pq.read_table(ROOT / "recipes/assets/garments/test.parquet")
    (folder / "new.png").write_bytes(table["image"][7].as_py())
    return {"image": "new.png"}


def first_weeks(folder: Path) -> str:
    """Return the first weeks of the year as a table, the last day with its known column only."""
    head, *rows = (ROOT / "recipes/assets/weather-hours/year.csv").read_text().splitlines()[:601]
    ahead = [",".join([*row.split(",")[:2], "", "", "", ""]) for row in rows[-24:]]
    return "\n".join([head, *rows[:-24], *ahead]) + "\n"


CHECKS: dict[str, tuple[list[Any], Callable[[Path, list[dict[str, Any]]], None]]] = {
    "classify_text": ([{"text": "And he laid his hands on them."}, {"text": "The king reigned in Samaria."}], classes),
    "classify_image": ([drawn], pictures),
    "forecast_timeseries": ([first_weeks], quantiles),
    "tag_tokens": ([{"text": "Spoke to Dr Omar Aziz on 3 May."}, {"text": "No change."}], entities),
    "embeddings": ([{"query": "And God saw the light."}, {"query": "Then said Boaz."}], vectors),
    "preference_dpo": ([{"prompt": "Translate to Dutch: And God saw the light."}], answered),
    "reranker": ([{"query": "And God saw the light.", "texts": ["En God zag het licht.", "Boaz zeide."]}], scores),
}


@pytest.mark.parametrize(
    "recipe", [name if name == DAILY else pytest.param(name, marks=pytest.mark.soak) for name in RECIPES]
)
def test_from_data_to_a_folder_that_others_load(recipe: str, folder: Path) -> None:
    run = stopped_and_resumed(recipe, folder)
    metric = RECIPES[recipe].metric
    less = RECIPES[recipe].less_is_better
    before, after, trivial = reached(run, metric, less)
    ahead = min(before, trivial) - after if less else after - max(before, trivial)
    assert ahead > MARGINS[recipe], (before, after, trivial)
    aitrain("evaluate", str(run))
    measured = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    assert measured["event"] == "evaluated" and measured[f"val_{metric}"] == pytest.approx(after, abs=1e-3)
    asked, same = CHECKS[recipe]
    records = [record(folder) if callable(record) else record for record in asked]
    table = isinstance(records[0], str)
    file = folder / f"{recipe}-new.{'csv' if table else 'jsonl'}"
    file.write_text(records[0] if table else "".join(json.dumps(record) + "\n" for record in records))
    said = [json.loads(line) for line in aitrain("predict", str(run), str(file)).splitlines() if line.startswith("{")]
    assert len(said) == (4 * 24 if table else len(asked))
    same(run, said)


def test_every_margin_has_its_recipe() -> None:
    assert set(MARGINS) == set(RECIPES) == set(CHECKS)
