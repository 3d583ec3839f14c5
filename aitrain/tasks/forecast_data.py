"""A table of series, prepared once: read, checked, and written for every rank to map."""

from __future__ import annotations

from pathlib import Path

from aitrain.config.data import DecimalMark, Series
from aitrain.data.cached import cached
from aitrain.data.series import read_series
from aitrain.data.series_account import SeriesAccount
from aitrain.data.source import Source
from aitrain.data.time_grid import Grid
from aitrain.data.windows import write_series
from aitrain.tasks.token_data import cache_folder

VERSION = 2
"""Raised whenever the same table would be prepared differently."""


def prepared_series(source: Source, data: Series, horizon: int, grid: Grid | None) -> Path:
    """Return the folder of a prepared table, created if it does not exist.

    Args:
        source: The data files.
        data: How it is read.
        horizon: Steps after the last value for which calendar columns are needed.
        grid: The steps of the training data; None = this is the training data.

    Raises:
        DataError: The table is refused, with file and line.
    """
    content = {"version": VERSION, "task": "forecast", "file": [source.name, source.digest()]}
    content |= {"fields": [data.time_field, data.time_format, data.value_field, data.series_field, data.known]}
    content |= {"how": [data.layout.name, data.gaps.name, data.calendar, horizon]}
    if data.decimal is not DecimalMark.point:
        content["decimal"] = data.decimal.name
    content |= {"grid": None if grid is None else [grid.seconds, grid.months]}

    def write(folder: Path) -> None:
        table = read_series(source, data, grid)
        write_series(table, data.calendar, horizon, folder)
        SeriesAccount(
            source.name,
            source.digest(),
            table.rows,
            len(table.series),
            steps=sum(len(one.values) for one in table.series),
            missing=sum(one.missing for one in table.series),
            later=sum(len(one.known) - len(one.values) for one in table.series),
            seconds=table.grid.seconds,
            months=table.grid.months,
            columns=len(data.known),
            empty=table.empty,
        ).save(folder)

    return cached(cache_folder(), content, write)
