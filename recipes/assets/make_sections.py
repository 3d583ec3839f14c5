"""Make the asset package-sections: what Debian packages do, in a few words, with the section of each, as CSV.

apt-cache dumpavail | python recipes/assets/make_sections.py recipes/assets/package-sections
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SECTIONS = ("games", "graphics", "mail", "science", "sound", "web")
TRAIN_EACH, TEST_EACH = 110, 20
LONGEST = 220
"""Characters of a description: whole sentences up to here."""


def packages() -> Iterator[dict[str, str]]:
    """Yield the fields of each package on standard input."""
    for part in sys.stdin.read().split("\n\n"):
        fields, name = {}, ""
        for line in part.splitlines():
            if line.startswith(" "):
                fields[name] += "\n" + line[1:]
            else:
                name, _, value = line.partition(": ")
                fields[name] = value
        yield fields


def described(package: dict[str, str]) -> str:
    """Return the short description and the first sentences of the long one, on one line."""
    short, _, long = package.get("Description-en", package.get("Description", "")).partition("\n")
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(long.split("\n.\n")[0].split()))
    words = f"{short[:1].upper()}{short[1:]}."
    for sentence in sentences:
        if not sentence or len(words) + 1 + len(sentence) > LONGEST:
            break
        words += f" {sentence}"
    return words


def main() -> None:
    """Draw packages of each section, one per source, and write train.csv and test.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("to", type=Path)
    to = parser.parse_args().to
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for package in packages():
        section, source = package.get("Section", ""), package.get("Source", package.get("Package", "")).split(" ")[0]
        text = described(package)
        is_telling = len(text) > 40 and "transitional" not in text.lower() and not text.startswith("Debug")
        if section in found and is_telling and text.isascii():
            found[section].setdefault(source.split("-")[0], text)
    draw = random.Random(0)
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for section, texts in found.items():
        chosen = sorted(set(texts.values()))
        draw.shuffle(chosen)
        rows["train"] += [(text, section) for text in chosen[:TRAIN_EACH]]
        rows["test"] += [(text, section) for text in chosen[TRAIN_EACH : TRAIN_EACH + TEST_EACH]]
    to.mkdir(exist_ok=True)
    for name, lines in rows.items():
        draw.shuffle(lines)
        with open(to / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("description", "section"))
            writer.writerows(lines)
        print(name, len(lines), {section: sum(each == section for _, each in lines) for section in SECTIONS})


if __name__ == "__main__":
    main()
