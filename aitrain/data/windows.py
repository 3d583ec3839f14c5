"""Windows of series: what a forecaster sees, what follows, and what is known in advance."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aitrain.data.columns import Columns, ColumnWriter
from aitrain.data.samples import Batch, Integers
from aitrain.data.series import SeriesTable
from aitrain.errors import DataError


def write_series(table: SeriesTable, calendar: bool, horizon: int, folder: Path) -> None:
    """Write series with the columns that are known in advance, calendar columns last.

    Args:
        table: The series.
        calendar: Whether there are columns of the calendar.
        horizon: Steps after the last value for which calendar columns are needed.
        folder: An empty folder.
    """
    types = {"values": np.float32, "known": np.float32, "first": np.int64, "name": np.uint8, "given": np.int64}
    with ColumnWriter(folder, types) as writer:
        for one in table.series:
            steps = max(len(one.known), len(one.values) + horizon)
            known = np.full((steps, one.known.shape[1]), np.nan, dtype=np.float32)
            known[: len(one.known)] = one.known
            if calendar:
                known = np.concatenate([known, table.grid.calendar(one.first, steps)], 1)
            writer.add(
                values=one.values,
                known=known.ravel(),
                first=[int(one.first.timestamp())],
                name=np.frombuffer(one.name.encode(), dtype=np.uint8),
                given=[known.shape[1]],
            )


@dataclass(frozen=True)
class Shape:
    """Sizes of a window."""

    context: int
    """C: steps that the model sees."""

    horizon: int
    """H: steps to forecast."""

    season: int
    """Steps after which values repeat."""

    shortest: int
    """Fewest steps before a forecast."""


@dataclass(frozen=True, eq=False)
class SeriesSet:
    """Written series, with statistics of each series."""

    columns: Columns
    trained: Integers
    """Steps of each series that training may see, `(S,)`."""

    spread: npt.NDArray[np.float32]
    """Standard deviation of each series in those steps, `(S,)`; 1 where it does not vary."""

    error: npt.NDArray[np.float32]
    """Mean error of repeating the last season within those steps, `(S,)`: the unit of MASE."""

    centre: npt.NDArray[np.float32]
    """Mean of each known column in training, `(K,)`."""

    scale: npt.NDArray[np.float32]
    """Its standard deviation, `(K,)`; 1 where it does not vary."""

    @classmethod
    def of(cls, columns: Columns, held: Integers, season: int, known: dict[str, Any] | None = None) -> SeriesSet:
        """Measure series.

        Args:
            columns: What `write_series` wrote.
            held: Steps held out at the end of each, `(S,)`.
            season: Steps after which values repeat.
            known: Centre and scale of the known columns, from training; None = these series are trained on.
        """
        trained = columns.lengths("values") - held
        spread, error = np.ones(len(columns), np.float32), np.ones(len(columns), np.float32)
        seen = []
        for at in range(len(columns)):
            values = np.asarray(columns.get("values", at))[: max(1, int(trained[at]))]
            finite = values[np.isfinite(values)]
            if len(finite) and finite.std() > 0:
                spread[at] = finite.std()
            steps = np.abs(values[season:] - values[:-season]) if len(values) > season else values[:0]
            steps = steps[np.isfinite(steps)]
            error[at] = steps.mean() if len(steps) and steps.mean() > 0 else spread[at]
            seen.append(_known(columns, at)[: max(1, int(trained[at]))])
        if known is not None:
            centre, scale = (np.asarray(known[key], dtype=np.float32) for key in ("centre", "scale"))
        else:
            rows = np.concatenate(seen)
            centre, scale = rows.mean(0), rows.std(0)
            scale[scale == 0] = 1
        return cls(columns, trained, spread, error, centre, scale)

    def __len__(self) -> int:
        return len(self.columns)

    def name(self, at: int) -> str:
        """Return the name of a series.

        Args:
            at: Its number.
        """
        return bytes(self.columns.get("name", at)).decode()

    def first(self, at: int) -> datetime:
        """Return the time of its first step.

        Args:
            at: Number of the series.
        """
        return datetime.fromtimestamp(int(self.columns.get("first", at)[0]), UTC)

    def values(self, at: int) -> npt.NDArray[np.float32]:
        """Return its values, `(T,)`, NaN where there is none.

        Args:
            at: Number of the series.
        """
        return np.asarray(self.columns.get("values", at))

    def known(self, at: int, begin: int, end: int) -> npt.NDArray[np.float32]:
        """Return its known columns, scaled, as far as they reach.

        Args:
            at: Number of the series.
            begin: First step.
            end: Step after the last one.

        Returns:
            `(<= end - begin, K)`.
        """
        if not len(self.centre):
            return np.zeros((end - begin, 0), dtype=np.float32)
        return (_known(self.columns, at)[begin:end] - self.centre) / self.scale


def _known(columns: Columns, at: int) -> npt.NDArray[np.float32]:
    width = int(columns.get("given", at)[0])
    given = np.asarray(columns.get("known", at))
    return given.reshape(-1, width) if width else np.zeros((len(columns.get("values", at)), 0), dtype=np.float32)


def origins(series: SeriesSet, shape: Shape, begins: Integers, ends: Integers, stride: int) -> Integers:
    """List windows: number of the series, and the first step to forecast.

    Args:
        series: The series.
        shape: Sizes of a window.
        begins: First step that may be forecast, of each series, `(S,)`.
        ends: Step after the last one that may be forecast, `(S,)`.
        stride: Steps between two windows.

    Returns:
        `(N, 2)`; windows without any value in front of the forecast or in it are left out.
    """
    found = []
    for at in range(len(series)):
        starts = np.arange(max(int(begins[at]), shape.shortest), int(ends[at]) - shape.horizon + 1, stride)
        seen = np.concatenate([[0], np.cumsum(np.isfinite(series.values(at)))])
        inside = seen[np.minimum(starts + shape.horizon, len(seen) - 1)] - seen[starts]
        before = seen[starts] - seen[np.maximum(starts - shape.context, 0)]
        starts = starts[(inside > 0) & (before > 0)]
        found.append(np.stack([np.full(len(starts), at), starts], 1))
    return np.concatenate(found).astype(np.int64) if found else np.zeros((0, 2), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class WindowSamples:
    """Windows; see `Samples`."""

    series: SeriesSet
    shape: Shape
    index: Integers
    """Number of the series and first step to forecast of each, `(N, 2)`."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def weights(self) -> Integers:
        """Steps with a value to forecast, `(N,)`."""
        found = np.zeros(len(self), dtype=np.int64)
        for at in np.unique(self.index[:, 0]):
            rows = self.index[:, 0] == at
            seen = np.concatenate([[0], np.cumsum(np.isfinite(self.series.values(int(at))))])
            starts = self.index[rows, 1]
            found[rows] = seen[np.minimum(starts + self.shape.horizon, len(seen) - 1)] - seen[starts]
        return found

    @property
    def units(self) -> Integers:
        """One per window, `(N,)`."""
        return np.ones(len(self), dtype=np.int64)

    def collate(self, rows: Integers, size: int) -> Batch:
        """Collate windows into one batch. Values are centred and scaled by those that the model sees.

        Args:
            rows: Numbers of the windows.
            size: B, rows of the batch; rows without a window have no value to forecast.

        Returns:
            float32: `values` and `observed` `(B, C)`, `known` `(B, C + H, K)`, `target` and `wanted` `(B, H)`, `centre`
            and `scale` `(B,)` (what undoes the scaling), `unit` `(B,)` (the error of the last season, scaled alike).
        """
        context, horizon = self.shape.context, self.shape.horizon
        values, target = np.zeros((size, context), np.float32), np.zeros((size, horizon), np.float32)
        observed, wanted = np.zeros_like(values), np.zeros_like(target)
        known = np.zeros((size, context + horizon, len(self.series.centre)), np.float32)
        centre, scale = np.zeros(size, np.float32), np.ones(size, np.float32)
        unit = np.ones(size, np.float32)
        for at, row in enumerate(rows):
            number, start = (int(entry) for entry in self.index[row])
            series = self.series.values(number)
            given = series[max(0, start - context) : start]
            centre[at], scale[at] = centre_and_scale(given, float(self.series.spread[number]))
            behind = series[start : start + horizon]
            known[at, context - len(given) :] = self.series.known(number, start - len(given), start + horizon)
            for found, mask, part, first in (
                (values, observed, given, context - len(given)),
                (target, wanted, behind, 0),
            ):
                here = np.isfinite(part)
                mask[at, first : first + len(part)] = here
                found[at, first : first + len(part)] = np.where(here, (part - centre[at]) / scale[at], 0)
            unit[at] = self.series.error[number] / scale[at]
        arrays = {"values": values, "observed": observed, "known": known, "target": target, "wanted": wanted}
        arrays |= {"centre": centre, "scale": scale, "unit": unit}
        return {key: torch.from_numpy(array) for key, array in arrays.items()}


def centre_and_scale(values: npt.NDArray[np.float32], spread: float) -> tuple[float, float]:
    """Return mean and scale of what a model sees.

    Args:
        values: With NaN where there is none; one at least is there.
        spread: Standard deviation of the whole series; a tenth of it is the least that a value counts, so that a flat
            stretch is not amplified.
    """
    here = values[np.isfinite(values)].astype(np.float64)
    return float(here.mean()), float(np.sqrt(here.var() + (0.1 * spread) ** 2))


def last_windows(series: SeriesSet, shape: Shape, path: Path) -> WindowSamples:
    """Return the window after the last value of each series.

    Args:
        series: The series.
        shape: Sizes of a window.
        path: Where they are from.

    Raises:
        DataError: Columns that are known in advance do not reach far enough.
    """
    rows = []
    for at in range(len(series)):
        start = len(series.values(at))
        ahead = series.known(at, start, start + shape.horizon)
        if len(ahead) < shape.horizon or not np.isfinite(ahead).all():
            there = int(np.isfinite(ahead).all(1).sum()) if len(ahead) else 0
            raise DataError(
                f"{path.name}: series {series.name(at)!r} has the columns of data.known for {there} steps after its "
                f"last value, and {shape.horizon} are forecast: add rows with these columns and an empty value"
            )
        rows.append((at, start))
    return WindowSamples(series, shape, np.array(rows, dtype=np.int64))


def refuse_short(series: SeriesSet, shape: Shape, index: Integers, part: str, names: Integers) -> None:
    """Refuse series that are too short for a window.

    Args:
        series: The series.
        shape: Sizes of a window.
        index: The windows, `(N, 2)`.
        part: What they are for.
        names: Steps that each series has for this, `(S,)`.

    Raises:
        DataError: A series has none.
    """
    lacking = sorted(set(range(len(series))) - set(index[:, 0].tolist()))
    if lacking:
        first = lacking[0]
        more = f", and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise DataError(
            f"series {series.name(first)!r}{more} has {int(names[first]):,} steps {part}, too few for a window of "
            f"{shape.shortest} + {shape.horizon}: give more data, or write a smaller task.horizon_steps, "
            "task.context_steps or task.season_steps"
        )
