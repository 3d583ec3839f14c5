"""Forecasts: tables long and wide, wrong rows by line, losses and metrics of scikit-learn, exported for torch."""

from __future__ import annotations

import csv
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.metrics import mean_absolute_error, mean_pinball_loss

from aitrain.config import RunConfig
from aitrain.config.data import Series
from aitrain.data.series import read_series
from aitrain.data.time_grid import Grid, found_grid
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.errors import DataError, RecipeError
from aitrain.models.patch_transformer import PatchTransformer, Sizes
from aitrain.recipe import compose
from aitrain.tasks.forecast import ForecastTask
from aitrain.tasks.forecast_baselines import seasonal_naive
from aitrain.tasks.forecast_metrics import pinball
from aitrain.tasks.registry import task_of
from aitrain.tasks.task import ExportJob, Measured

ALONE = Group(Ranks(), "cpu")
FIRST = datetime(2024, 1, 1)
SMALL = ["task.context_steps=48", "task.horizon_steps=12", "task.width=16", "task.layers=1", "task.heads=2"]


def load(hour: int, phase: float = 0.0) -> float:
    """A day that repeats, with a slow drift."""
    return round(100 + 30 * np.sin(2 * np.pi * (hour / 24 + phase)) + 0.05 * hour + 3 * np.cos(hour * 1.7), 3)


def wide(path: Path, hours: int = 400, **more: Any) -> Path:
    """Two meters, and a price that is known in advance."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "price", "north", "south"])
        for hour in range(hours):
            row = [f"{FIRST + timedelta(hours=hour):%Y-%m-%dT%H:%M}", hour % 7, load(hour), load(hour, 0.3)]
            writer.writerow(more.get(f"row{hour}", row))
    return path


def long(path: Path, hours: int = 400) -> Path:
    """The same, one row per meter and hour, the meters in turn."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "series", "price", "value"])
        for hour in range(hours):
            time = f"{FIRST + timedelta(hours=hour):%Y-%m-%dT%H:%M}"
            writer.writerow([time, "north", hour % 7, load(hour)])
            writer.writerow([time, "south", hour % 7, load(hour, 0.3)])
    return path


def config(path: Path, *words: str) -> RunConfig:
    start = [f"data.path={path}", "data.known=[price]", *SMALL, "trainer.max_steps=1", "trainer.accelerator=cpu"]
    return compose("forecast_timeseries", [*start, "trainer.precision=fp32", *words])


def made(config: RunConfig) -> tuple[ForecastTask, Any]:
    task = task_of(config)
    assert isinstance(task, ForecastTask)
    return task, task.samples(ALONE)


def test_long_and_wide_tables_give_the_same_windows(tmp_path: Path) -> None:
    (_, one), (_, other) = made(config(wide(tmp_path / "w.csv"))), made(config(long(tmp_path / "l.csv")))
    assert len(one.train) == len(other.train) and len(one.validation) == len(other.validation) == 12
    rows = np.arange(0, len(one.train), 37)
    first, second = (splits.train.collate(rows, len(rows)) for splits in (one, other))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_window_is_what_stands_in_the_table(tmp_path: Path) -> None:
    task, splits = made(config(wide(tmp_path / "w.csv")))
    at = int(np.flatnonzero((splits.train.index == [1, 100]).all(1))[0])
    batch = splits.train.collate(np.array([at]), 2)
    undo = lambda values: values * batch["scale"][0] + batch["centre"][0]  # noqa: E731
    expected = np.array([load(hour, 0.3) for hour in range(52, 112)], dtype=np.float32)
    torch.testing.assert_close(undo(batch["values"][0]), torch.from_numpy(expected[:48]), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(undo(batch["target"][0]), torch.from_numpy(expected[48:]), rtol=1e-5, atol=1e-4)
    price = batch["known"][0, :, 0] * splits.train.series.scale[0] + splits.train.series.centre[0]
    assert price.round().tolist() == [hour % 7 for hour in range(52, 112)]
    assert batch["known"].shape[2] == 7, "price; sine and cosine of day, week and year"
    assert batch["wanted"].sum(1).tolist() == [12, 0], "the second row fills the batch"
    seen = expected[:48].astype(np.float64)
    spread = float(np.std([load(hour, 0.3) for hour in range(320)]))
    assert batch["scale"][0].item() == pytest.approx(np.sqrt(seen.var() + (0.1 * spread) ** 2), rel=1e-4)


def test_held_out_is_the_end_of_every_series_and_training_never_sees_it(tmp_path: Path) -> None:
    _, splits = made(config(wide(tmp_path / "w.csv")))
    assert splits.train.index[:, 1].max() + 12 <= 320 <= splits.validation.index[:, 1].min()
    assert np.diff(splits.validation.index[splits.validation.index[:, 0] == 0, 1]).tolist() == [12] * 5
    changed = {
        f"row{hour}": [f"{FIRST + timedelta(hours=hour):%Y-%m-%dT%H:%M}", 0, 9999, 1] for hour in range(320, 400)
    }
    _, other = made(config(wide(tmp_path / "c.csv", **changed)))
    rows = np.arange(0, len(splits.train), 50)
    first, second = (each.train.collate(rows, len(rows)) for each in (splits, other))
    for key in ("values", "target", "centre", "scale", "unit"):
        assert torch.equal(first[key], second[key]), key


def test_the_loss_is_scikit_learns_pinball_loss(tmp_path: Path) -> None:
    task, splits = made(config(wide(tmp_path / "w.csv")))
    model: Any = task.build().eval()
    rows = np.array([3, 200, 500])
    batch = splits.train.collate(rows, 5)
    with torch.no_grad():
        said = model(batch["values"], batch["observed"], batch["known"])[:3].numpy()
    target = batch["target"][:3].numpy()
    losses = [mean_pinball_loss(target.ravel(), said[..., at].ravel(), alpha=q) for at, q in enumerate((0.1, 0.5, 0.9))]
    ours = task.loss_sum(model, batch) / splits.train.weights[rows].sum()
    assert ours.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert pinball(torch.tensor([[[3.0]]]), torch.tensor([[5.0]]), [0.9]).item() == pytest.approx(1.8)


def test_metrics_are_those_of_their_definitions(tmp_path: Path) -> None:
    task, splits = made(config(wide(tmp_path / "w.csv")))
    model, held = task.build().eval(), splits.validation
    with torch.no_grad():
        whole = task.measure(model, held.collate(np.arange(12), 12))
        parts = [task.measure(model, held.collate(np.arange(at, min(at + 5, 12)), 5)) for at in (0, 5, 10)]
    torch.testing.assert_close(sum(part.sums for part in parts), whole.sums, rtol=1e-5, atol=1e-4)
    found = task.metrics(Measured(whole.sums))
    low, middle, high = whole.rows.view(12, 12, 3).double().numpy().transpose(2, 0, 1)  # type: ignore[union-attr]
    right, units = [], []
    for number, start in held.index:
        right.append(held.series.values(int(number))[start : start + 12].astype(np.float64))
        trained = held.series.values(int(number))[:320].astype(np.float64)
        units.append(mean_absolute_error(trained[24:], trained[:-24]))
    target = np.array(right)
    mase = np.mean([mean_absolute_error(target[at], middle[at]) / units[at] for at in range(12)])
    assert found["mase"] == pytest.approx(mase, rel=1e-4)
    sums = [
        mean_pinball_loss(target.ravel(), said.ravel(), alpha=q) for said, q in ((low, 0.1), (middle, 0.5), (high, 0.9))
    ]
    assert found["wql"] == pytest.approx(2 * np.mean(sums) / np.abs(target).mean(), rel=1e-4)
    assert found["coverage"] == pytest.approx(((low <= target) & (target <= high)).mean(), abs=1e-9)


def test_the_season_is_repeated(tmp_path: Path) -> None:
    task, splits = made(config(wide(tmp_path / "w.csv"), "task.horizon_steps=30", "task.context_steps=50"))
    found = seasonal_naive(splits.validation, [0])[0]
    start = int(splits.validation.index[0, 1])
    expected = [load(start - 24 + step % 24) for step in range(30)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    measured = task.baselines(splits)
    assert set(measured) == {"the last season again", "gradient boosting"}
    assert measured["gradient boosting"]["mase"] < measured["the last season again"]["mase"], "the drift is learned"


def test_gradient_boosting_is_left_out_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task, splits = made(config(wide(tmp_path / "w.csv")))
    from aitrain.tasks import forecast_baselines

    monkeypatch.setattr(forecast_baselines.importlib.util, "find_spec", lambda name: None)
    assert set(task.baselines(splits)) == {"the last season again"}
    assert "pip install 'aitrain[forecast]'" in caplog.text
    assert HistGradientBoostingRegressor is not None


def test_masked_gaps_are_neither_seen_nor_learned_nor_measured(tmp_path: Path) -> None:
    path = wide(tmp_path / "w.csv")
    lines = path.read_text().splitlines()
    del lines[101:104]  # three hours of both meters
    lines[60] = lines[60].rsplit(",", 1)[0] + ","  # one hour of the south
    path.write_text("\n".join(lines) + "\n")
    task, splits = made(config(path, "data.gaps=mask"))
    assert "without a value, masked: 7 of 800 steps" in splits.report.text()
    at = int(np.flatnonzero((splits.train.index == [1, 95]).all(1))[0])
    batch = splits.train.collate(np.array([at]), 1)
    assert batch["observed"][0].sum() == 47 and batch["observed"][0, 59 - 47] == 0
    assert batch["wanted"][0].tolist() == [1.0] * 5 + [0.0] * 3 + [1.0] * 4 and splits.train.weights[at] == 9
    model: Any = task.build().eval()
    other = {key: value.clone() for key, value in batch.items()}
    other["target"][0, 5:8] = 1e6
    with torch.no_grad():
        assert torch.equal(task.loss_sum(model, batch), task.loss_sum(model, other))
        assert torch.equal(task.measure(model, batch).sums, task.measure(model, other).sums)


def test_what_is_in_front_of_a_series_is_masked(tmp_path: Path) -> None:
    _, splits = made(config(wide(tmp_path / "w.csv"), "task.context_steps=96"))
    first = splits.train.collate(np.array([0]), 1)
    assert splits.train.index[0].tolist() == [0, 24], "a season is the least"
    assert first["observed"][0].tolist() == [0.0] * 72 + [1.0] * 24 and not first["known"][0, :72].any()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["x,1,2,3"], "w.csv:2: 'time' is 'x', not a time like 2025-03-31T14:00"),
        (
            ['2024-01-01,1,"2,5",3'],
            "w.csv:2: 'north' is '2,5', not a number: where numbers have a decimal comma, write",
        ),
        (["2024-01-01,1,inf,3"], "w.csv:2: 'north' is infinite"),
        (["2024-01-01,,2,3"], "w.csv:2: 'price' has no value, but data.known says that it is known at every step"),
        (
            ["2024-01-01,1,2,3", "2024-01-02,1,,3", "2024-01-03,1,2,3"],
            "w.csv:3: series 'north' has no value at 2024-01-02",
        ),
        (["2024-01-01,1,2,3", "2024-01-02,1,nan,3", "2024-01-03,1,2,3"], "w.csv:3: series 'north' has no value at"),
        (
            ["2024-01-01,1,2,3", "2024-01-02,1,2,3", "2024-01-03,1,2,3", "2024-01-06,1,2,3"],
            "w.csv:5: 2 steps of one day are missing before 2024-01-06T00:00 in series 'north': fill them, or",
        ),
        (
            ["2024-01-01,1,2,3", "2024-01-01,1,2,3", "2024-01-02,1,2,3", "2024-01-03,1,2,3"],
            "w.csv:3: 2024-01-01T00:00 appears twice",
        ),
        (
            ["2024-01-01,1,2,3", "2024-01-02,1,2,3", "2024-01-03,1,2,3", "2024-01-03T05:00,1,2,3", "2024-01-04,1,2,3"],
            "w.csv:5: 2024-01-03T05:00:00 does not fit the steps of one day that begins at 2024-01-01T00:00",
        ),
        (["2024-01-01,1,2,3"], "every series has one row"),
        (["2024-01-01,1,,", "2024-01-02,1,,"], "no series has a value"),
    ],
)
def test_wrong_rows_name_file_and_line(tmp_path: Path, rows: list[str], says: str) -> None:
    path = tmp_path / "w.csv"
    path.write_text("\n".join(["time,price,north,south", *rows]) + "\n")
    with pytest.raises(DataError) as caught:
        read_series(path, Series(path=str(path), known=["price"]))
    assert says in str(caught.value)


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = long(tmp_path / "l.csv", hours=3)
    for keys, says in (
        (Series(time_field="when"), "l.csv:2: no column 'when' .*: write data.time_field=COLUMN"),
        (Series(known=["holiday"]), "l.csv:2: no column 'holiday' .*: write data.known without it"),
        (
            Series(value_field="load", layout=Series.layout.__class__.long),
            "no column 'load' .*: write data.value_field",
        ),
        (Series(known=["series", "value"]), "'series' is 'north', not a number"),
    ):
        with pytest.raises(DataError, match=says):
            read_series(path, keys)


def test_times_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,value\n31-12-2023 23:30,1\n31-12-2023 23:45,2\n01-01-2024 00:00,3\n")
    table = read_series(path, Series(time_format="%d-%m-%Y %H:%M"))
    assert table.grid == Grid(900) and table.grid.name == "15 minutes" and table.grid.season == 96
    path.write_text("time,value\n2024-03-31T01:00+01:00,1\n2024-03-31T03:00+02:00,2\n2024-03-31T04:00+02:00,3\n")
    assert read_series(path, Series()).series[0].values.tolist() == [1, 2, 3], "clocks were put forward: an hour each"
    path.write_text(
        "time,value\n" + "".join(f"20{20 + month // 12}-{month % 12 + 1:02d}-01,{month}\n" for month in range(30))
    )
    table = read_series(path, Series())
    assert table.grid == Grid(0, 1) and table.grid.season == 12 and len(table.series[0].values) == 30
    assert table.grid.time(table.series[0].first, 13) == datetime.fromisoformat("2021-02-01T00:00+00:00")
    path.write_text("time,value\n2024-01-03,3\n2024-01-01,1\n2024-01-02,2\n")
    assert read_series(path, Series()).series[0].values.tolist() == [1, 2, 3], "rows may stand in any order"


def test_the_calendar_turns_once_a_day_a_week_and_a_year() -> None:
    first = datetime.fromisoformat("2024-01-01T00:00+00:00")  # a Monday
    hours = Grid(3600).calendar(first, 24 * 15)
    assert hours.shape == (360, 6)
    np.testing.assert_allclose(hours[5, [0, 3]], hours[29, [0, 3]], atol=1e-5)
    np.testing.assert_allclose(hours[5, [1, 4]], hours[5 + 168, [1, 4]], atol=1e-5)
    assert hours[0, 1] == pytest.approx(0, abs=1e-5) and hours[0, 4] == pytest.approx(1), "weeks begin on Monday"
    assert Grid(86_400).calendar(first, 3).shape == (3, 4) and Grid(0, 1).calendar(first, 3).shape == (3, 2)
    assert found_grid([[first, first + timedelta(days=7), first + timedelta(days=14)]]).season == 52


def test_short_series_and_files_of_their_own_for_validation(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"series 'north', and 1 more has 28 steps to train on, too few .* 24 \+ 12"):
        made(config(wide(tmp_path / "s.csv", hours=40)))
    path, later = wide(tmp_path / "w.csv"), wide(tmp_path / "later.csv", hours=100)
    _, splits = made(config(path, f"data.validation_path={later}", "data.validation_share=null"))
    assert splits.train.index[:, 1].max() == 388 and len(splits.validation) == 12
    with pytest.raises(RecipeError, match="write data.validation_share=0.2 for the last part of every series"):
        config(path, "data.validation_samples=5")
    with pytest.raises(RecipeError, match=r"task.quantiles=\[0.5, 0.1\] must increase"):
        config(path, "task.quantiles=[0.5,0.1]")
    with pytest.raises(RecipeError, match="adapter=lora has nothing to adapt"):
        config(path, "adapter=lora")


def test_export_and_predictions_are_the_models_own(tmp_path: Path) -> None:
    path = wide(tmp_path / "w.csv")
    task, splits = made(config(path))
    torch.manual_seed(1)
    model: Any = task.build().eval()
    task.export(dict(model.named_parameters()), ExportJob(tmp_path / "out", "run"))
    folder = tmp_path / "out/model"
    settings = json.loads((folder / "config.json").read_text())
    assert settings["quantiles"] == [0.1, 0.5, 0.9] and settings["seconds"] == 3600
    program = torch.export.load(folder / "forecaster.pt2").module()
    held = splits.validation
    batch = held.collate(np.arange(5), 5)
    undo = (batch["scale"][:, None], batch["centre"][:, None])
    raw = torch.where(batch["observed"] > 0, batch["values"] * undo[0] + undo[1], 0)
    known = batch["known"] * torch.from_numpy(held.series.scale) + torch.from_numpy(held.series.centre)
    spread = torch.from_numpy(held.series.spread[held.index[:5, 0]])
    with torch.no_grad():
        theirs = program(raw, batch["observed"], known, spread)
        ours = model(batch["values"], batch["observed"], batch["known"]).sort(-1).values
    torch.testing.assert_close(theirs, ours * undo[0][..., None] + undo[1][..., None], rtol=1e-4, atol=1e-3)

    lines = path.read_text().splitlines()
    ahead = [",".join([*line.split(",")[:2], "", ""]) for line in lines[301:313]]
    (tmp_path / "new.csv").write_text("\n".join([*lines[:301], *ahead]) + "\n")
    other = task_of(task.config)
    assert isinstance(other, ForecastTask)
    other.recall(json.loads(json.dumps(task.learned())))
    with torch.no_grad():
        said = list(other.predictions(model, tmp_path / "new.csv", torch.device("cpu")))
    assert len(said) == 24 and said[0]["time"] == f"{FIRST + timedelta(hours=300):%Y-%m-%dT%H:%M:%S}"
    at = int(np.flatnonzero((splits.train.index == [0, 300]).all(1))[0])
    batch = splits.train.collate(np.array([at]), 1)
    with torch.no_grad():
        same = (
            model(batch["values"], batch["observed"], batch["known"]).sort(-1).values * batch["scale"] + batch["centre"]
        )
    found = [[step[level] for level in ("0.1", "0.5", "0.9")] for step in said[:12]]
    np.testing.assert_allclose(found, same[0].numpy(), rtol=2e-3)
    (tmp_path / "new.csv").write_text("\n".join([*lines[:301], *ahead[:5]]) + "\n")
    with pytest.raises(DataError, match="has the columns of data.known for 5 steps after its last value, and 12 are"):
        list(other.predictions(model, tmp_path / "new.csv", torch.device("cpu")))


def test_a_picture_and_answers(tmp_path: Path) -> None:
    task, splits = made(config(wide(tmp_path / "w.csv")))
    model = task.build().eval()
    with torch.no_grad():
        found = task.measure(model, splits.validation.collate(np.arange(12), 12))
        answers = task.answers(model, torch.device("cpu"), lambda: False)
    assert task.picture(found, tmp_path / "p.svg")
    drawn = (tmp_path / "p.svg").read_text()
    assert "north, 12 steps of one hour from 2024-01-14T08:00" in drawn and drawn.count("<polygon") == 3
    assert answers[0]["prompt"].startswith("north from 2024-01-14T08:00, right: ")
    assert "series 'north', 12 steps from" in task.shown_sample(splits.train, 0)


@pytest.mark.parametrize("patch", [2, 7, 16, 48])
def test_patches_reach_the_last_step(patch: int) -> None:
    sizes = Sizes(48, 6, 2, 3, season=5, width=16, layers=1, heads=2, patch=patch)
    model = PatchTransformer(sizes).eval()
    values, observed, known = torch.randn(2, 48), torch.ones(2, 48), torch.randn(2, 54, 2)
    with torch.no_grad():
        said = model(values, observed, known)
        changed = values.clone()
        changed[:, -1] += 1
        assert said.shape == (2, 6, 3) and not torch.allclose(model(changed, observed, known), said)
        alike = known.clone()
        alike[:, -1] += 1  # what is known of the last step ahead changes this step alone
        other = model(values, observed, alike)
        assert torch.equal(other[:, :-1], said[:, :-1]) and not torch.allclose(other[:, -1], said[:, -1])


def test_nothing_known_in_advance(tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    path.write_text(
        "time,value\n" + "".join(f"{FIRST + timedelta(hours=h):%Y-%m-%dT%H:%M},{load(h)}\n" for h in range(300))
    )
    task, splits = made(config(path, "data.known=[]", "data.calendar=false"))
    model: Any = task.build().eval()
    batch = splits.train.collate(np.array([0, 5]), 3)
    assert batch["known"].shape == (3, 60, 0) and torch.isfinite(task.loss_sum(model, batch))
    with torch.no_grad():
        said = list(task.predictions(model, path, torch.device("cpu")))
    assert len(said) == 12 and said[0]["time"] == f"{FIRST + timedelta(hours=300):%Y-%m-%dT%H:%M:%S}"
    task.export(dict(model.named_parameters()), ExportJob(tmp_path / "out", "run"))
    program = torch.export.load(tmp_path / "out/model/forecaster.pt2").module()
    assert program(torch.randn(4, 48), torch.ones(4, 48), torch.zeros(4, 60, 0), torch.ones(4)).shape == (4, 12, 3)


def test_a_series_without_any_value_is_told(tmp_path: Path) -> None:
    path = wide(tmp_path / "w.csv", hours=200)
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"{head},spare", *(f"{row}," for row in rows)]) + "\n")
    _, splits = made(config(path))
    assert "without any value, skipped: 1 series, first 'spare'" in splits.report.text()
    assert set(splits.train.index[:, 0]) == {0, 1}
