"""What a run trains: checksums of model, tokenizer, chat template and data, taken at its start, compared ever after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aitrain.config import RunConfig
from aitrain.data.prepare import Prepared, tokenizer_content
from aitrain.errors import RecipeError
from aitrain.models.digest import model_digests, text_digest
from aitrain.models.load import local_folder

Facts = dict[str, Any]
"""Plain values, as they stand under `facts` in `run.yaml` and in every checkpoint."""


def model_facts(config: RunConfig, tokenizer: Any) -> Facts:
    """Return what tells a run's model and tokenizer from others.

    Args:
        config: The run.
        tokenizer: The model's tokenizer, with the recipe's chat template.
    """
    template = tokenizer.chat_template
    return {
        "model": model_digests(local_folder(config.model)),
        "tokenizer": text_digest(tokenizer_content(tokenizer)),
        "chat_template": None if template is None else text_digest(template),
    }


def data_facts(data: Prepared) -> Facts:
    """Return what tells a run's data from other data.

    Args:
        data: The prepared samples.
    """
    return {
        "data": {
            key: {
                "file": source.file,
                "sha256": source.sha256,
                "samples": source.sequences,
                "tokens": source.tokens,
            }
            for key, source in zip(("train", "validation"), data.report.sources, strict=False)
        }
    }


def first_difference(then: Facts, now: Facts, config: RunConfig) -> str | None:
    """Return how what is there now differs from what the run began with, or None.

    Args:
        then: Facts of the run; empty in runs of before such facts were kept.
        now: Facts of today; what is absent is not compared.
        config: The run, for the message.
    """
    place = f"model.path={config.model.path}"
    if "model" in then and "model" in now:
        for name in sorted({*then["model"], *now["model"]}):
            old, new = then["model"].get(name), now["model"].get(name)
            if old != new:
                what = "is gone" if new is None else "was not there" if old is None else "is another file now"
                return f"{place}: {name} {what}, compared with when the run began"
    for key, what in (("tokenizer", "tokenizer"), ("chat_template", "chat template")):
        if key in then and key in now and then[key] != now[key]:
            return f"{place}: the {what} is not the one that the run began with"
    return _data_difference(then.get("data", {}), now.get("data", {}))


def _data_difference(then: Facts, now: Facts) -> str | None:
    for key in ("train", "validation"):
        old, new = then.get(key), now.get(key)
        if old is None or new is None or old == new:
            continue
        if old["samples"] != new["samples"]:
            return f"{new['file']}: {new['samples']:,} samples now, {old['samples']:,} when the run began"
        if old["sha256"] != new["sha256"]:
            return f"{new['file']} is not the file that the run began with, though it has as many samples"
        return f"{new['file']}: {new['tokens']:,} tokens now, {old['tokens']:,} when the run began"
    return None


def refuse_difference(then: Facts, now: Facts, config: RunConfig, run: Path) -> None:
    """Refuse to go on with a run whose model or data are not what they were.

    Args:
        then: Facts of the run.
        now: Facts of today.
        config: The run.
        run: Its directory.

    Raises:
        RecipeError: They differ; the message names the first difference.
    """
    difference = first_difference(then, now, config)
    if difference is not None:
        raise RecipeError(
            f"{difference}: put back what {run} began with, start a new run, or add --changed-inputs to go on with "
            "what is there now"
        )
