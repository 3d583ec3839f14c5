"""An exported forecaster: a program for plain torch, the weights, the settings, and a card."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import save_file

from aitrain.config import RunConfig
from aitrain.config.paths import title_of
from aitrain.errors import ModelError
from aitrain.io import new_directory, write_text, writing
from aitrain.models.patch_transformer import Forecaster, PatchTransformer, Sizes
from aitrain.models.permissions import share_files
from aitrain.models.quiet import quiet
from aitrain.tasks.task import ExportJob

PROGRAM, WEIGHTS, SETTINGS = "forecaster.pt2", "model.safetensors", "config.json"

CARD = """---
library_name: pytorch
pipeline_tag: time-series-forecasting
---

# {run}

Trained with aitrain from random weights.

| | |
|---|---|
{rows}

`forecaster.pt2` needs nothing but torch:

```python
import torch

forecast = torch.export.load("forecaster.pt2").module()
quantiles = forecast(values, observed, known, spread)
```

| argument | shape | what |
|---|---|---|
| `values` | `(B, {context})` | the last {context} steps of B series, as measured; anything where there is no value |
| `observed` | `(B, {context})` | 1 where there is a value, else 0 |
| `known` | `(B, {both}, {known})` | what is known in advance, for these steps and the {horizon} next ones: {columns} |
| `spread` | `(B,)` | standard deviation of each series as a whole |

It returns the quantiles {quantiles} of the next {horizon} steps, `(B, {horizon}, {count})`, in the units of `values`.
"""


def write_forecaster(
    model: PatchTransformer, sizes: Sizes, settings: dict[str, Any], job: ExportJob, config: RunConfig
) -> None:
    """Write a forecaster.

    Args:
        model: With its trained weights, on the CPU.
        sizes: Sizes of the model.
        settings: What else is to be known to use it; `known` has `centre` and `scale` of the known columns.
        job: Destination, and facts for its model card.
        config: The run.

    Raises:
        ModelError: Only an adapter is asked for.
        AitrainError: The folder cannot be written; nothing is left of it then.
    """
    if job.flat and not job.merge:
        raise ModelError("--adapter-only: this run trained no adapter, so only the full model can be exported")
    job.go_on()
    centre, scale = (torch.tensor(settings["known"][key], dtype=torch.float32) for key in ("centre", "scale"))
    whole = Forecaster(model, centre, scale).eval()
    program = exported(whole, sizes)
    job.go_on()
    advice = "free space there, or name another folder"
    with writing(f"--to {job.to}", advice), new_directory(job.to) as folder:
        place = folder if job.flat else folder / "model"
        place.mkdir(exist_ok=True)
        with quiet():
            torch.export.save(program, place / PROGRAM)
        save_file(dict(model.state_dict()), place / WEIGHTS)
        written = json.dumps({"sizes": sizes.as_dict(), **settings}, indent=2)
        write_text(place / SETTINGS, written + "\n")
        write_text(place / "README.md", card(sizes, settings, job, config))
        share_files(folder)


def exported(whole: Forecaster, sizes: Sizes) -> torch.export.ExportedProgram:
    """Return the forecaster as a program for any number of series at once.

    Args:
        whole: The forecaster, in evaluation mode.
        sizes: Sizes of the model.
    """
    rows = torch.export.Dim("B", min=1)
    both = sizes.context + sizes.horizon
    example = (
        torch.randn(2, sizes.context),
        torch.ones(2, sizes.context),
        torch.zeros(2, both, sizes.known),
        torch.ones(2),
    )
    with torch.no_grad():
        return torch.export.export(whole, example, dynamic_shapes=({0: rows}, {0: rows}, {0: rows}, {0: rows}))


def card(sizes: Sizes, settings: dict[str, Any], job: ExportJob, config: RunConfig) -> str:
    """Return the model card.

    Args:
        sizes: Sizes of the model.
        settings: Other facts needed to use it.
        job: Facts about the run.
        config: The run.
    """
    rows: list[tuple[str, Any]] = [
        ("data", title_of(config.data.path)),
        ("steps", job.step),
        ("trained windows", None if job.units is None else f"{job.units:,}"),
        ("season", f"{settings['season_steps']} steps"),
        ("held-out MASE before", None if job.before is None else f"{job.before:.4f}"),
        ("held-out MASE after", None if job.after is None else f"{job.after:.4f}"),
        ("seed", config.seed),
    ]
    columns = [*settings["known_columns"], *(["sines, then cosines of the calendar"] if settings["calendar"] else [])]
    return CARD.format(
        run=job.run,
        rows="\n".join(f"| {key} | {value} |" for key, value in rows if value is not None),
        context=sizes.context,
        both=sizes.context + sizes.horizon,
        horizon=sizes.horizon,
        known=sizes.known,
        columns=", ".join(columns) or "nothing",
        quantiles=", ".join(f"{level:g}" for level in settings["quantiles"]),
        count=sizes.quantiles,
    )
