"""A company with a spreadsheet: what a European Excel writes becomes a model to talk to, with three commands typed."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aitrain.models.assets import ASSETS, _place

REAL_MODEL = _place(ASSETS["smollm2-135m-instruct"])
"""Where whoever runs the tests keeps the real model, if it was fetched."""

SUBJECTS = ("contract", "factuur", "pakket", "adres", "wachtwoord", "garantie")
ANSWERS = {
    "contract": "U kunt uw contract opzeggen via ‘Mijn account’; dat duurt één maand.",
    "factuur": "Uw factuur staat in ‘Mijn account’.\nKosten: € 5 per maand.",
    "pakket": "Uw pakket komt morgen aan.",
    "adres": "Geef uw nieuwe adres door via ‘Mijn gegevens’.",
    "wachtwoord": "Kies ‘Wachtwoord vergeten’ op de inlogpagina.",
    "garantie": "U heeft twee jaar garantie op elk apparaat.",
}
WAYS = (
    "Ik heb een vraag over mijn {}.",
    "Hoe zit het met mijn {}?",
    "Waar vind ik mijn {}?",
    "Kunt u mij helpen?\nHet gaat om mijn {}.",
    'Er is iets met mijn "{}".',
    "Mijn {} klopt niet; wat nu?",
    "Graag hulp bij {}.",
    "{}: hoe werkt dat?",
    "Vraagje: één {}, wat kost dat?",
    "Beste, mijn {} is zoek.",
)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """60 records with semicolons, Windows-1252, and quotes with line breaks."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=";", lineterminator="\r\n")
    writer.writerow(("vraag", "antwoord", "klant"))
    for number in range(60):
        subject = SUBJECTS[number % 6]
        writer.writerow((WAYS[number // 6].format(subject), ANSWERS[subject], f"klant {number}"))
    path = tmp_path / "klantvragen.csv"
    path.write_bytes(text.getvalue().encode("cp1252"))
    return path


def typed(command: str, folder: Path, said: str = "") -> str:
    """Run a command line as a person types it; return standard output and error."""
    words = [sys.executable, "-m", "aitrain", *command.split()]
    env = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(words, cwd=folder, input=said, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def three_commands(export: Path, model: str, question: str) -> tuple[float, float, list[dict[str, str]], str]:
    """Return held-out loss before and after, the answers after training, and what the chat says."""
    folder = export.parent
    made = typed(f"init sft_lora helpdesk --data {export.name}{model}", folder)
    assert "prompt: vraag" in made and "completion: antwoord" in made
    told = typed("train helpdesk/recipe.yaml", folder)
    assert "read as Windows-1252" in told and "delimiter semicolon" in told
    before, after = map(float, re.findall(r"held-out loss  before ([\d.]+)  after ([\d.]+)", told)[0])
    (run,) = re.findall(r"talk    aitrain chat (\S+)", told)
    events = [json.loads(line) for line in Path(run, "events.jsonl").read_text().splitlines()]
    (first, *_, last) = [event["answers"] for event in events if event["event"] == "answers"]
    assert [entry["answer"] for entry in first] != [entry["answer"] for entry in last]
    assert Path(run, "report", "curves.svg").is_file()
    return before, after, last, typed(f"chat {run}", folder, said=f"{question}\n")


def test_the_shipped_model_learns_in_three_commands(export: Path) -> None:
    before, after, _, said = three_commands(
        export, " --model asset:tiny-llama optim.lr=3e-3", "Waar vind ik mijn pakket?"
    )
    assert after < 0.7 * before, (before, after)
    assert said.strip()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not REAL_MODEL.is_dir(), reason="SmolLM2-135M is not here: aitrain fetch smollm2-135m-instruct")
def test_a_real_model_answers_as_the_company_does(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache" / "assets").mkdir(parents=True)
    (tmp_path / "cache" / "assets" / REAL_MODEL.name).symlink_to(REAL_MODEL)
    monkeypatch.setenv("AITRAIN_CACHE", str(tmp_path / "cache"))
    before, after, answers, said = three_commands(export, "", "Waar vind ik mijn pakket?")
    assert after < 0.7 * before, (before, after)
    assert sum(entry["answer"] == entry["expected"] for entry in answers) >= 1
    assert "Uw pakket komt morgen aan." in said
