"""Errors of forecasts, as sums over windows that any number of ranks can add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

# Shapes: B = windows, H = steps to forecast, Q = quantiles.


def pinball(said: torch.Tensor, target: torch.Tensor, quantiles: Sequence[float]) -> torch.Tensor:
    """Return the quantile loss of each step and quantile, `(B, H, Q)`: zero for the value itself.

    Args:
        said: The quantiles, `(B, H, Q)`.
        target: What came, `(B, H)`.
        quantiles: Which they are, Q of them.

    Source: Koenker and Bassett, Econometrica 46 (1978).
    """
    levels = torch.tensor(quantiles, dtype=said.dtype, device=said.device)
    over = target[..., None] - said
    return torch.maximum(levels * over, (levels - 1) * over)


def error_sums(said: torch.Tensor, batch: Mapping[str, Any], quantiles: Sequence[float]) -> torch.Tensor:
    """Return what `metrics_of` makes metrics of, float64 `(7,)`.

    Args:
        said: The quantiles, scaled as the batch is, `(B, H, Q)`.
        batch: From `WindowSamples.collate`.
        quantiles: Which they are.
    """
    target, wanted = batch["target"].double(), batch["wanted"].double()
    scale, unit = batch["scale"].double()[:, None], batch["unit"].double()
    rising = said.double().sort(-1).values
    losses = pinball(said.double(), target, quantiles).mean(-1) * wanted
    sorted_losses = pinball(rising, target, quantiles).mean(-1) * wanted * scale
    errors = (rising[..., quantiles.index(0.5)] - target).abs() * wanted
    steps = wanted.sum(1)
    here = steps > 0
    per_window = torch.where(here, errors.sum(1) / steps.clamp(min=1) / unit, torch.zeros_like(unit))
    values = (target * scale + batch["centre"].double()[:, None]).abs() * wanted
    inside = (rising[..., 0] <= target) & (target <= rising[..., -1])
    return torch.stack(
        [
            losses.sum(),
            wanted.sum(),
            per_window.sum(),
            here.double().sum(),
            sorted_losses.sum(),
            values.sum(),
            (inside.double() * wanted).sum(),
        ]
    )


def metrics_of(sums: torch.Tensor, quantiles: Sequence[float]) -> dict[str, float]:
    """Return the metrics of all windows together.

    Args:
        sums: From `error_sums`, added up.
        quantiles: Which were forecast.

    Returns:
        `loss`, the quantile loss of scaled values; `mase`, the mean absolute error in units of repeating the last
        season in the training data (Hyndman and Koehler 2006), a mean over the windows; `wql`, twice the quantile loss
        per sum of the absolute values (as GluonTS has it), a mean over the quantiles; `coverage`, the share of the
        values between the lowest and the highest quantile, where there are several.
    """
    loss, steps, errors, windows, quantile_loss, values, inside = sums.tolist()
    found = {"loss": loss / steps, "mase": errors / windows, "wql": 2 * quantile_loss / max(values, 1e-12)}
    return found | ({"coverage": inside / steps} if len(quantiles) > 1 else {})
