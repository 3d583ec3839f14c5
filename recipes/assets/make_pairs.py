"""Make the asset verse-pairs: the verses of verses-en-nl as pairs for search across languages.

python recipes/assets/make_pairs.py recipes/assets/verses-en-nl recipes/assets/verse-pairs
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from make_verses import PROMPT


def main() -> None:
    """Turn each conversation into a pair."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verses", type=Path)
    parser.add_argument("to", type=Path)
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    for name, to in (("train", "train"), ("validation", "test")):
        rows = []
        for line in (args.verses / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            asked, answer = (message["content"] for message in json.loads(line)["messages"])
            rows.append(json.dumps({"query": asked.removeprefix(PROMPT), "positive": answer}, ensure_ascii=False))
        (args.to / f"{to}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
