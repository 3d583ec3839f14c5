"""The licence of a model, as stated in its folder, and what it forbids."""

from __future__ import annotations

import re
from pathlib import Path

from aitrain.config.run import Purpose
from aitrain.models.assets import ASSETS

NOT_COMMERCIAL = re.compile(r"(^|[-_.])nc([-_.]|$)|non-?commercial|research(-only)?$|(^|[-_.])(mrl|mnpl)([-_.]|$)")
"""In names of licences that forbid commercial use: `cc-by-nc-4.0`, `apple-amlr-research`, Mistral's `mrl`, `mnpl`."""

NOT_CHANGED = re.compile(r"(^|[-_.])nd([-_.]|$)|no-?deriv")
"""In names of licences that forbid distributing derived works: `cc-by-nd-4.0`."""


def licence_of(folder: Path) -> str | None:
    """Return the licence that the head of a model's README.md names, in lower case; None if none is stated.

    Args:
        folder: A Hugging Face folder.
    """
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    told = {}
    for name, value in re.findall(r"^(license|license_name):[ \t]*(.+)$", head[1] if head else "", re.MULTILINE):
        told[name] = value.strip().strip("[]'\"").strip().lower()
    licence = told.get("license")
    return told.get("license_name", licence) if licence == "other" else licence


def told_licence(path: str | None, licence: str | None) -> str | None:
    """Return the licence of the model behind `model.path`: an asset's, or what was found in the folder.

    Args:
        path: `model.path`.
        licence: What was found.
    """
    if path is None or not path.startswith("asset:"):
        return licence
    asset = ASSETS.get(path.removeprefix("asset:").split("/")[0])
    return licence if asset is None else asset.licence.lower()


def licence_faults(path: str, licence: str | None, purpose: Purpose | None) -> list[str]:
    """Return why a model may not be used for a purpose, one sentence each; nothing if none is stated.

    Args:
        path: `model.path`.
        licence: The model's licence; None = not stated.
        purpose: What the trained model is for.
    """
    if purpose is None:
        return []
    stated = f"run.purpose={purpose.name}"
    if licence is None or licence == "other":
        return [
            f"model.path={path} states no licence, so {stated} cannot be checked: read its terms, then write "
            "`license: NAME` between two lines `---` at the top of its README.md, or write run.purpose=null"
        ]
    if purpose is Purpose.commercial and NOT_COMMERCIAL.search(licence):
        return [
            f"model.path={path} has the licence {licence}, which forbids commercial use ({stated}): choose another "
            "model, or ask its owner for other terms"
        ]
    if NOT_CHANGED.search(licence):
        return [
            f"model.path={path} has the licence {licence}, which forbids distributing derived models "
            f"({stated}): choose another model, or ask its owner for other terms"
        ]
    return []
