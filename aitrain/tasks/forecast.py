"""Forecasting: quantiles of the next steps, compared with repeating the last season and with gradient boosting."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from aitrain.config import RunConfig
from aitrain.config.data import Series
from aitrain.config.task import Forecast
from aitrain.data.cached import shared
from aitrain.data.columns import Columns
from aitrain.data.records import check_source
from aitrain.data.samples import Integers, Samples, Splits
from aitrain.data.series_account import SeriesAccount
from aitrain.data.source import Source
from aitrain.data.time_grid import Grid
from aitrain.data.windows import SeriesSet, Shape, WindowSamples, last_windows, origins, refuse_short
from aitrain.dist.group import Group
from aitrain.errors import DataError
from aitrain.models.patch_transformer import PatchTransformer, Sizes
from aitrain.models.quiet import drawn_on_the_host
from aitrain.tasks.data_files import source_of
from aitrain.tasks.forecast_baselines import gradient_boosting, seasonal_naive
from aitrain.tasks.forecast_data import prepared_series
from aitrain.tasks.forecast_metrics import error_sums, metrics_of, pinball
from aitrain.tasks.metric import Metric
from aitrain.tasks.task import ExportJob, Measured, Room, Task, Watch, unwatched
from aitrain.tasks.token_data import cache_folder, data_files

_log = logging.getLogger(__name__)


class ForecastTask(Task):
    """A forecaster; see `Task`."""

    primary = Metric("mase")
    weight_unit, most_on_cpu = "steps", 64

    def __init__(self, config: RunConfig, accelerator: str = "cpu", located: Any = None) -> None:
        super().__init__(config, accelerator, located)
        assert isinstance(config.task, Forecast) and isinstance(config.data, Series), "the recipe was checked"
        self.keys, self.data = config.task, config.data
        self.grid: Grid | None = None
        self.known: dict[str, list[float]] | None = None
        """`centre` and `scale` of the known columns, from the training data."""

        self._held: WindowSamples | None = None

    # ---------------------------------------------------------------- data

    def learned(self) -> dict[str, Any]:
        """Return the steps, and the scale of the known columns."""
        assert self.grid is not None and self.known is not None, "`samples` has run"
        return {"seconds": self.grid.seconds, "months": self.grid.months, "known": self.known}

    def recall(self, values: Mapping[str, Any]) -> None:
        """Restore what `learned` returned.

        Args:
            values: From a checkpoint.
        """
        self.grid = Grid(int(values["seconds"]), int(values["months"]))
        self.known = dict(values["known"])

    @property
    def shape(self) -> Shape:
        """Sizes of a window."""
        assert self.grid is not None, "the steps are known once data was read"
        keys, season = self.keys, self.keys.season_steps or self.grid.season
        shortest = min(keys.context_steps, max(season, keys.patch_steps))
        return Shape(keys.context_steps, keys.horizon_steps, season, shortest)

    def samples(self, group: Group, watch: Watch = unwatched) -> Splits:
        """Read and check the series; the last part of each is held out. See `Task.samples`.

        Args:
            group: The ranks.
            watch: Called between the files.
        """
        files = data_files(self.config)
        sources = files.all

        def all_of_them() -> list[Path]:
            for source in sources:
                check_source(source)
                watch()
            first = self._prepare(sources[0], self.grid)
            grid = SeriesAccount.load(first).grid
            return [first, *(self._prepare(source, grid) for source in sources[1:])]

        folders = shared(group, cache_folder(), all_of_them)
        accounts = [SeriesAccount.load(folder) for folder in folders]
        self.grid = self.grid or accounts[0].grid
        apart = len(folders) > 1
        columns = Columns.open(folders[0])
        train_set, held = self._measured(columns, apart), None
        self.known = {"centre": train_set.centre.tolist(), "scale": train_set.scale.tolist()}
        if apart:
            other = SeriesSet.of(Columns.open(folders[1]), np.zeros(1, np.int64), self.shape.season, self.known)
            lengths = other.columns.lengths("values")
            held = self._windows(other, np.zeros_like(lengths), lengths, self.shape.horizon, "to be held out")
        elif self.data.validation_share is not None:
            ends = columns.lengths("values")
            held = self._windows(train_set, train_set.trained, ends, self.shape.horizon, "to be held out")
        begins = np.zeros_like(train_set.trained)
        train = self._windows(train_set, begins, train_set.trained, self.keys.window_stride, "to train on")
        self._held = held
        account = accounts[0]
        account.others, account.train = accounts[1:], len(train)
        account.validation = 0 if held is None else len(held)
        return Splits(train, held, account, account.fingerprint())

    def _measured(self, columns: Columns, apart: bool) -> SeriesSet:
        """Return the training series, with what is held out at the end of each."""
        share = None if apart else self.data.validation_share
        lengths = columns.lengths("values")
        held = np.zeros_like(lengths)
        if share is not None:
            held = np.maximum(np.round(share * lengths).astype(np.int64), self.shape.horizon)
        return SeriesSet.of(columns, held, self.shape.season, self.known)

    def _windows(self, series: SeriesSet, begins: Integers, ends: Integers, stride: int, part: str) -> WindowSamples:
        index = origins(series, self.shape, begins, ends, stride)
        refuse_short(series, self.shape, index, part, ends - begins)
        return WindowSamples(series, self.shape, index)

    def _prepare(self, source: Source, grid: Grid | None) -> Path:
        return prepared_series(source, self.data, self.keys.horizon_steps, grid)

    def shown_sample(self, samples: Samples, index: int) -> str:
        """Return the place of a window and its next values.

        Args:
            samples: From `samples`.
            index: Number of the window.
        """
        assert isinstance(samples, WindowSamples) and self.grid is not None, "samples of this task"
        number, start = (int(entry) for entry in samples.index[index])
        series = samples.series
        values = series.values(number)
        seen = values[max(0, start - 6) : start]
        comes = values[start : start + min(6, self.shape.horizon)]
        time = self.grid.time(series.first(number), start)
        shown = [" ".join("-" if np.isnan(value) else f"{value:.6g}" for value in part) for part in (seen, comes)]
        return (
            f"sample {index}: series {series.name(number)!r}, {self.shape.horizon} steps from {time:%Y-%m-%dT%H:%M}\n"
            f"... {shown[0]} | {shown[1]} ..."
        )

    # ---------------------------------------------------------------- model

    def sizes(self) -> Sizes:
        """Return the sizes of the model."""
        keys = self.keys
        known = len(self.known["centre"]) if self.known is not None else 0
        season = self.shape.season if self.grid is not None else 1
        return Sizes(
            *(keys.context_steps, keys.horizon_steps, known, len(keys.quantiles), season),
            **{name: getattr(keys, name) for name in ("width", "layers", "heads", "dropout")},
            patch=keys.patch_steps,
        )

    def parameters(self) -> int | None:
        """Return the number of weights."""
        with torch.device("meta"):
            return sum(weight.numel() for weight in PatchTransformer(self.sizes()).parameters())

    def fitting(self, room: Room) -> int | None:
        """Estimate how many windows fit into memory at once, from the tokens that each block keeps.

        Args:
            room: The memory.
        """
        sizes = self.sizes()
        per_token = room.precision_bytes * sizes.width * 16 * sizes.layers
        return max(0, room.bytes_free) // (sizes.patches * per_token + 64 * sizes.horizon * room.precision_bytes)

    def smaller(self) -> list[str]:
        """Return how to reduce the memory of a window."""
        return [f"task.context_steps={max(1, self.keys.context_steps // 2)}"]

    def flops_per_unit(self) -> float | None:
        """Estimate the operations of forward and backward per window: six per weight and token of the blocks."""
        sizes = self.sizes()
        blocks = sizes.layers * 8 * sizes.width**2 + sizes.width * sizes.patch * (2 + sizes.known)
        return 6.0 * (sizes.patches * blocks + sizes.patches * sizes.width * sizes.horizon * 16)

    def build(self) -> nn.Module:
        """Build the model with random weights."""
        with drawn_on_the_host():
            return PatchTransformer(self.sizes())

    def _said(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the quantiles, unsorted, scaled, `(B, H, Q)`."""
        kind = next(model.parameters()).dtype
        return model(*(batch[key].to(kind) for key in ("values", "observed", "known"))).float()

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the sum of the quantile losses over the steps with a value, a mean over the quantiles.

        Args:
            model: The model.
            batch: From `WindowSamples.collate`.
        """
        losses = pinball(self._said(model, batch), batch["target"].float(), self.keys.quantiles).mean(-1)
        return (losses * batch["wanted"]).sum()

    def measure(self, model: nn.Module, batch: Mapping[str, Any]) -> Measured:
        """Measure one batch of windows.

        Args:
            model: The model.
            batch: From `WindowSamples.collate`.

        Returns:
            Sums of `error_sums`; lowest, middle and highest quantile of each window, as measured.
        """
        said = self._said(model, batch)
        sums = error_sums(said, batch, self.keys.quantiles)
        said = said.sort(-1).values
        shown = said[..., [0, self.keys.quantiles.index(0.5), -1]].flatten(1)
        return Measured(sums, shown * batch["scale"].float()[:, None] + batch["centre"].float()[:, None])

    def metrics(self, found: Measured) -> dict[str, float]:
        """Return loss, MASE, weighted quantile loss and coverage.

        Args:
            found: Sums over all windows.
        """
        return metrics_of(found.sums, self.keys.quantiles)

    def baselines(self, splits: Splits) -> dict[str, dict[str, float]]:
        """Return the metrics of repeating the last season and of gradient boosting.

        Args:
            splits: The samples.
        """
        held, train = splits.validation, splits.train
        if held is None:
            return {}
        assert isinstance(held, WindowSamples) and isinstance(train, WindowSamples), "samples of this task"
        rows = np.arange(len(held))
        batch = held.collate(rows, len(held))
        naive = torch.from_numpy(seasonal_naive(held, rows))
        scaled = (naive - batch["centre"][:, None]) / batch["scale"][:, None]
        count = len(self.keys.quantiles)
        found = {"the last season again": scaled[..., None].expand(-1, -1, count)}
        boosted = gradient_boosting(train, held, self.keys.quantiles, self.config.seed)
        if boosted is None:
            _log.warning("the baseline gradient boosting needs scikit-learn: pip install 'aitrain[forecast]'")
        else:
            found["gradient boosting"] = torch.from_numpy(boosted)
        measured = {}
        for name, said in found.items():
            metrics = metrics_of(error_sums(said, batch, self.keys.quantiles), self.keys.quantiles)
            measured[name] = {key: value for key, value in metrics.items() if key in ("mase", "wql", "coverage")}
        return measured

    def answers(self, model: nn.Module, device: torch.device, stop: Callable[[], bool]) -> list[dict[str, str]]:
        """Let the model forecast two held-out windows.

        Args:
            model: The model.
            device: Where it is.
            stop: Whether to end early.
        """
        held, grid = self._held, self.grid
        if held is None or grid is None or not len(held):
            return []
        rows = np.unique(np.array([0, len(held) - 1]))
        batch = {key: value.to(device) for key, value in held.collate(rows, len(rows)).items()}
        said = self._said(model, batch)[..., self.keys.quantiles.index(0.5)]
        said = said * batch["scale"][:, None] + batch["centre"][:, None]
        found = []
        for at, row in enumerate(rows):
            number, start = (int(entry) for entry in held.index[int(row)])
            right = held.series.values(number)[start : start + 5]
            time = grid.time(held.series.first(number), start)
            prompt = f"{held.series.name(number)} from {time:%Y-%m-%dT%H:%M}, right: {_listed(right)} ..."
            found.append({"prompt": prompt, "answer": f"{_listed(said[at, :5].tolist())} ..."})
        return found

    def picture(self, found: Measured, file: Path) -> bool:
        """Draw three held-out windows with their forecasts.

        Args:
            found: The quantiles of all held-out windows.
            file: Picture to write.
        """
        held, grid = self._held, self.grid
        if held is None or grid is None or found.rows is None:
            return False
        from aitrain.tasks.forecast_picture import Window, forecasts

        rows = np.unique(np.linspace(0, len(held) - 1, min(3, len(held))).round().astype(int))
        windows, horizon = [], self.shape.horizon
        for row in rows:
            number, start = (int(entry) for entry in held.index[row])
            values, before = held.series.values(number), min(self.shape.context, 3 * horizon)
            time = grid.time(held.series.first(number), start)
            title = f"{held.series.name(number)}, {horizon} steps of one {grid.name} from {time:%Y-%m-%dT%H:%M}"
            low, middle, high = found.rows[row].view(horizon, 3).T.tolist()
            past = values[max(0, start - before) : start].tolist()
            windows.append(Window(title, past, values[start : start + horizon].tolist(), low, middle, high))
        levels = (self.keys.quantiles[0], self.keys.quantiles[-1])
        forecasts(windows, levels, file)
        return True

    # ---------------------------------------------------------------- afterwards

    def predictions(self, model: nn.Module, path: Path, device: torch.device) -> Iterator[dict[str, Any]]:
        """Yield the quantiles of each step after the last value of every series of a file.

        Args:
            model: From `trained_model`.
            path: A table as in training.
            device: Where the model is.

        Raises:
            DataError: A row cannot be used, or the known columns do not reach far enough.
        """
        grid = self.grid
        if grid is None:
            raise DataError("the checkpoint does not record the length of a step: it belongs to another task")
        columns = Columns.open(self._prepare(source_of(path, self.data), grid))
        series = SeriesSet.of(columns, np.zeros(len(columns), np.int64), self.shape.season, self.known)
        windows = last_windows(series, self.shape, path)
        for at in range(len(windows)):
            batch = {key: value.to(device) for key, value in windows.collate(np.array([at]), 1).items()}
            said = self._said(model, batch).sort(-1).values
            said = said * batch["scale"][:, None, None] + batch["centre"][:, None, None]
            number, start = (int(entry) for entry in windows.index[at])
            for step, levels in enumerate(said[0].tolist()):
                time = grid.time(series.first(number), start + step)
                names = [f"{level:g}" for level in self.keys.quantiles]
                yield {"series": series.name(number), "time": f"{time:%Y-%m-%dT%H:%M:%S}"} | {
                    name: float(f"{value:.6g}") for name, value in zip(names, levels, strict=True)
                }

    def export(self, weights: Mapping[str, torch.Tensor], job: ExportJob) -> None:
        """Write the model as a program that plain torch runs, its weights, and its settings.

        Args:
            weights: Trained tensors of a checkpoint.
            job: Destination, and facts for its model card.
        """
        from aitrain.tasks.forecast_export import write_forecaster

        assert self.known is not None, "`samples` has run, or `recall`"
        model = self.trained_model(weights)
        assert isinstance(model, PatchTransformer), "`build` makes it"
        settings = {
            "quantiles": list(self.keys.quantiles),
            "season_steps": self.shape.season,
            "known_columns": [*self.data.known],
            "calendar": self.data.calendar,
            **self.learned(),
        }
        write_forecaster(model, self.sizes(), settings, job, self.config)


def _listed(values: Any) -> str:
    return " ".join("-" if np.isnan(value) else f"{value:.4g}" for value in values)
