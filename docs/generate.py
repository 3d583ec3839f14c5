"""Writes the generated pages of the documentation: every recipe and every configuration key."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import get_type_hints

from omegaconf import MISSING

from aitrain.config import GROUPS, RunConfig
from aitrain.config.manual import KeyRow, all_keys, class_doc
from aitrain.config.source import header
from aitrain.launch.ready import READY, ready_script

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Written by docs/generate.py from {source}. Change that, then run `make docs`. -->\n"
HEAD = "| key | value | default | meaning |\n|---|---|---|---|"

KEYS_INTRO = """# Every key

Set a key in a recipe, or behind any command that takes one: `aitrain train sft_lora optim.lr=1e-4`.
`aitrain show optim.lr` prints the same text in a terminal. `null` means that aitrain derives the value.

A group with options is chosen by its name alone (`adapter=lora`); the keys of the option follow with a dot
(`adapter.rank=8`).
"""

RECIPES_INTRO = """# Recipes

A recipe is one short file. Run it by name (`aitrain train NAME`) or by path, change any key behind it, and look before
you start with `aitrain check NAME`. What the keys mean stands under [Every key](keys.md).
"""


def row_line(row: KeyRow) -> str:
    """Return one key as a line of a Markdown table.

    Args:
        row: The key.
    """
    default = "*you give it*" if row.default == MISSING else f"`{row.default}`"
    cells = (f"`{row.key}`", row.type, default, row.doc)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def group_section(group: str, rows: list[KeyRow]) -> list[str]:
    """Return the section of one group: what all options share first, then what each option adds or changes.

    Args:
        group: Name of the group.
        rows: Its keys, those of one option together.
    """
    out = [f"## {group}\n"]
    if group not in GROUPS:
        about = [] if group == "seed" else [class_doc(get_type_hints(RunConfig)[group]) + "\n"]
        return [*out, *about, HEAD, *map(row_line, rows), ""]
    of_option = {option: [row for row in rows if row.option == option] for option in GROUPS[group]}
    text = {option: [row_line(row) for row in of_option[option]] for option in of_option}
    shared = [line for line in next(iter(text.values())) if all(line in lines for lines in text.values())]
    out.append(class_doc(get_type_hints(RunConfig)[group]) + "\n")
    if shared:
        out += [HEAD, *shared, ""]
    shown: dict[tuple[str, ...], str] = {}
    for option, cls in GROUPS[group].items():
        out += [f"### {group}={option}\n", class_doc(cls) + "\n"]
        own = tuple(line for line in text[option] if line not in shared)
        if own and own in shown:
            out.append(f"Its keys are those of `{group}={shown[own]}`.\n")
        elif own:
            shown[own] = option
            out += [HEAD, *own, ""]
    return out


def keys_page() -> str:
    """Return `docs/keys.md`: every key of every group, from the dataclasses in `aitrain/config/`."""
    rows = {group: list(found) for group, found in groupby(all_keys(), key=lambda row: row.key.split(".")[0])}
    out = [NOTE.format(source="aitrain/config/ and configs/"), KEYS_INTRO]
    for field in fields(RunConfig):
        out += group_section(field.name, rows.get(field.name, []))
    return "\n".join(out).rstrip() + "\n"


def recipes_page() -> str:
    """Return `docs/recipes.md`: the comment at the head of each recipe, and its keys."""
    out = [NOTE.format(source="recipes/*.yaml"), RECIPES_INTRO]
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        about = header(path)
        body = "\n".join(path.read_text(encoding="utf-8").splitlines()[len(about) :]).strip("\n")
        # a line of its own becomes a paragraph; an indented one goes on from the line above
        paragraphs = re.sub(r"\n +", " ", "\n".join(about)).replace("\n", "\n\n")
        out += [f"## {path.stem}\n", paragraphs + "\n", f'```yaml title="recipes/{path.name}"\n{body}\n```\n']
    return "\n".join(out).rstrip() + "\n"


PAGES = {"keys.md": keys_page, "recipes.md": recipes_page}


def main() -> int:
    """Write the pages that differ from their source and say which."""
    written = []
    scripts = {f"../launch/{name}.sbatch": partial(ready_script, name) for name in READY}
    for name, page in {**PAGES, **scripts}.items():
        path, text = ROOT / "docs" / name, page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            written.append(name)
    print(f"docs: {', '.join(written) or 'nothing'} rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
