"""Baseline forecasts: repeating the last season, and gradient boosting on the same windows."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aitrain.data.windows import WindowSamples

MOST_ROWS = 40_000
"""Steps that gradient boosting learns from, drawn at random; more make it slower but hardly better."""

LAGS, SEASONS = 3, 3
"""Last values, and values of the same place in the last seasons, that it sees."""

# Shapes: N = windows, H = steps to forecast, Q = quantiles.


def seasonal_naive(samples: WindowSamples, rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the last season repeated, `(N, H)`; where that has no value, the season before it, or the mean.

    Args:
        samples: The windows.
        rows: Numbers of those to forecast.
    """
    found = np.empty((len(rows), samples.shape.horizon))
    for at, row in enumerate(rows):
        number, start = samples.index[int(row)]
        past = samples.series.values(int(number))[max(0, start - samples.shape.context) : start].astype(np.float64)
        found[at] = [_alike(past, step, samples.shape.season) for step in range(samples.shape.horizon)]
    return found


def _alike(past: npt.NDArray[np.float64], step: int, season: int) -> float:
    at = len(past) + step % season - season
    while at >= 0:
        if np.isfinite(past[at]):
            return float(past[at])
        at -= season
    return float(np.nanmean(past))


def gradient_boosting(
    train: WindowSamples, held: WindowSamples, quantiles: Sequence[float], seed: int
) -> npt.NDArray[np.float64] | None:
    """Return the quantiles that gradient boosting forecasts of the held-out windows, `(N, H, Q)`, scaled as these are.

    One model per quantile, over all series and all steps ahead: it sees the last values, those of the same place in the
    last seasons, the mean of the last one, how far ahead the step is, and what is known of it.

    Args:
        train: Windows to learn from.
        held: Windows to forecast.
        quantiles: Which.
        seed: Chooses what is learned from.

    Returns:
        None if scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        return None
    from sklearn.ensemble import HistGradientBoostingRegressor

    draw = np.random.default_rng(seed)
    horizon = train.shape.horizon
    count = min(len(train), max(1, MOST_ROWS // min(horizon, 8)))
    rows = np.sort(draw.choice(len(train), count, replace=False))
    features, target, wanted = _table(train, rows)
    steps = np.flatnonzero(wanted.ravel())
    steps = draw.choice(steps, min(len(steps), MOST_ROWS), replace=False)
    asked, *_ = _table(held, np.arange(len(held)))
    told = np.isfinite(features[steps]).any(0)  # a season that no window reaches has no information
    features, asked = features[:, told], asked[:, told]
    found = np.empty((len(held), horizon, len(quantiles)))
    for at, quantile in enumerate(quantiles):
        model = HistGradientBoostingRegressor(loss="quantile", quantile=quantile, max_iter=150, random_state=seed)
        model.fit(features[steps], target.ravel()[steps])
        found[:, :, at] = model.predict(asked).reshape(len(held), horizon)
    return np.sort(found, -1)


def _table(
    samples: WindowSamples, rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return features `(N * H, F)`, targets `(N, H)` and which of these are there `(N, H)`."""
    context, horizon, season = samples.shape.context, samples.shape.horizon, samples.shape.season
    tables, targets, wanted = [], [], []
    for part in np.array_split(rows, max(1, len(rows) // 512)):
        batch = {key: value.numpy() for key, value in samples.collate(part, len(part)).items()}
        values = np.where(batch["observed"] > 0, batch["values"], np.nan)
        steps = np.arange(horizon)
        columns = [np.broadcast_to(steps, (len(part), horizon))[..., None], batch["known"][:, context:]]
        last = [values[:, -lag] if lag <= context else np.full(len(part), np.nan) for lag in range(1, LAGS + 1)]
        columns += [np.broadcast_to(entry[:, None, None], (len(part), horizon, 1)) for entry in last]
        for back in range(1, SEASONS + 1):
            at = context + steps % season - back * season
            alike = np.where(at >= 0, values[:, np.maximum(at, 0)], np.nan)
            columns.append(alike[..., None])
        recent = batch["observed"][:, -season:] > 0
        mean = np.where(recent, batch["values"][:, -season:], 0).sum(1) / np.maximum(recent.sum(1), 1)
        columns.append(np.broadcast_to(mean[:, None, None], (len(part), horizon, 1)))
        tables.append(
            np.concatenate([column.astype(np.float32) for column in columns], 2).reshape(len(part) * horizon, -1)
        )
        targets.append(batch["target"])
        wanted.append(batch["wanted"])
    return np.concatenate(tables), np.concatenate(targets), np.concatenate(wanted)
