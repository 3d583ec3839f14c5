"""Make the asset verse-choices: English verses, each with its Dutch counterpart, and with that in another order.

python recipes/assets/make_choices.py recipes/assets/verses-en-nl recipes/assets/verse-choices
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

TRAIN = 600


def main() -> None:
    """Give each verse a second answer, of the same words in random order."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verses", type=Path)
    parser.add_argument("to", type=Path)
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for name, to in (("train", "train"), ("validation", "test")):
        lines = (args.verses / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        pairs = [[message["content"] for message in json.loads(line)["messages"]] for line in lines][:TRAIN]
        rows = []
        for asked, answer in pairs:
            words = answer.split()
            while (mixed := draw.sample(words, len(words))) == words:
                pass
            row = {"prompt": asked, "chosen": answer, "rejected": " ".join(mixed)}
            rows.append(json.dumps(row, ensure_ascii=False))
        (args.to / f"{to}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
