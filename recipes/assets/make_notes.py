"""Make the asset care-notes: invented notes of a care service with marked persons, places, dates and telephone numbers.

python recipes/assets/make_notes.py recipes/assets/care-notes
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

FIRST = {
    "train": [
        "Anna",
        "Willem",
        "Fatima",
        "Joost",
        "Greta",
        "Pieter",
        "Sanne",
        "Karim",
        "Hilda",
        "Bram",
        "Noor",
        "Dirk",
        "Lotte",
        "Yusuf",
        "Marta",
        "Teun",
    ],
    "test": ["Esther", "Ruben", "Amina", "Gerrit", "Silke", "Hugo", "Wietske", "Omar"],
}
LAST = {
    "train": [
        "Jansen",
        "Bakker",
        "Visser",
        "Yilmaz",
        "Smit",
        "Meijer",
        "Hofstra",
        "Dekker",
        "Postma",
        "Kuiper",
        "Haddad",
        "Bos",
        "Vos",
        "Wiersma",
    ],
    "test": ["Veenstra", "Mulder", "Aziz", "Hoekstra", "Koster", "Brouwer"],
}
PLACES = {
    "train": ["Groningen", "Assen", "Leek", "Haren", "Delfzijl", "Winschoten", "Zuidhorn", "Hoogezand"],
    "test": ["Appingedam", "Veendam", "Roden", "Uithuizen"],
}
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
NOTES = [
    "{PERSON} from {PLACE} called on {DATE} about the new wheelchair.",
    "Visited {PERSON} at home in {PLACE}; the wound heals well.",
    "On {DATE} the daughter, {PERSON}, asked to be rung back at {PHONE}.",
    "Please ring {PHONE} before the visit, {PERSON} does not hear the bell.",
    "The pharmacy in {PLACE} will deliver the medicine on {DATE}.",
    "{PERSON} moves to {PLACE} on {DATE}, the neighbour is {PERSON}.",
    "No change since the last visit, the next one is on {DATE}.",
    "Spoke to Dr {PERSON} by telephone ({PHONE}) about the dose.",
    "The patient slept badly and ate little, blood pressure was normal.",
    "Transport to {PLACE} is ordered for {DATE}, contact {PERSON}, {PHONE}.",
    "Mrs {PERSON} would like her hair cut before {DATE}.",
    "The key is with {PERSON}, next door, in {PLACE} nobody else has one.",
]


def make(part: str, count: int, draw: random.Random) -> list[dict[str, object]]:
    """Return notes with names that belong to one part alone."""
    fillers = {
        "PERSON": lambda: f"{draw.choice(FIRST[part])} {draw.choice(LAST[part])}",
        "PLACE": lambda: draw.choice(PLACES[part]),
        "DATE": lambda: f"{draw.randint(1, 28)} {draw.choice(MONTHS)}",
        "PHONE": lambda: f"050-{draw.randint(1000000, 9999999)}",
    }
    records = []
    for _ in range(count):
        text, entities = "", []
        for piece in re.split(r"(\{\w+\})", draw.choice(NOTES)):
            if piece.startswith("{"):
                kind = piece[1:-1]
                said = fillers[kind]()
                entities.append({"start": len(text), "end": len(text) + len(said), "label": kind})
                text += said
            else:
                text += piece
        records.append({"text": text, "entities": entities})
    return records


def main() -> None:
    """Write train.jsonl and test.jsonl."""
    parser = argparse.ArgumentParser()
    parser.add_argument("to", type=Path)
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for part, count in (("train", 400), ("test", 100)):
        lines = [json.dumps(record) for record in make(part, count, draw)]
        (args.to / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
