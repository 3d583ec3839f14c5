"""Tables of meters as offices export them: what is unusual in them is proposed in the words to add, never assumed."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aitrain.config.data import DecimalMark, Series
from aitrain.data.series import read_series
from aitrain.data.series_reading import found_format, has_comma, number_by_comma, proposed_reading
from aitrain.data.source import Source
from aitrain.errors import DataError
from aitrain.tasks.data_files import source_of

FORMATS = ("%d.%m.%Y %H:%M", "%d-%m-%Y", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %I:%M %p", "%Y/%m/%d %H:%M", "%d.%m.%y %H:%M")


@pytest.mark.parametrize("pattern", FORMATS)
def test_the_format_of_times_is_found(pattern: str) -> None:
    times = [datetime(2025, 1, 1) + timedelta(hours=7 * number) for number in range(200)]
    assert found_format([f"{time:{pattern}}" for time in times]) == pattern


def test_a_format_has_to_fit_all_times() -> None:
    assert found_format(["01.02.2025", "31.02.2025"]) is None and found_format([7]) is None and found_format([]) is None
    assert found_format(["01/02/2025"]) == "%d/%m/%Y", "the day comes first"


def written(path: Path, *rows: str) -> Source:
    path.write_text("\n".join(rows) + "\n")
    return source_of(path, Series(path=str(path)))


def refusal(source: Source, keys: Series) -> str:
    with pytest.raises(DataError) as caught:
        read_series(source, keys)
    return str(caught.value)


def test_times_and_numbers_of_another_country_are_refused_in_two_lines(tmp_path: Path) -> None:
    rows = [f"{day:02d}.03.2025;{day},25;1.{day:03d},5" for day in range(1, 31)]
    source = written(tmp_path / "a.csv", "time;north;south", *rows)
    assert refusal(source, Series()) == (
        "a.csv:2: 'time' is '01.03.2025', not a time like 2025-03-31T14:00: write data.time_format='%d.%m.%Y' "
        "(also a.csv:3, a.csv:4, a.csv:5, ... 30 records in all)"
    )
    assert refusal(source, Series(time_format="%d.%m.%Y")) == (
        "a.csv:2: 'north' is '1,25', not a number: where numbers have a decimal comma, write data.decimal=comma "
        "(also a.csv:3, a.csv:4, a.csv:5, ... 30 records in all)"
    )
    table = read_series(source, Series(time_format="%d.%m.%Y", decimal=DecimalMark.comma))
    north, south = (one.values.tolist() for one in table.series)
    assert north == [day + 0.25 for day in range(1, 31)] and south == [1000.5 + day for day in range(1, 31)]


def test_a_wrong_time_among_right_ones_is_shown(tmp_path: Path) -> None:
    source = written(tmp_path / "a.csv", "time,value", "2025-01-01,1", "yesterday,2", "soon,3")
    with pytest.raises(DataError, match=r"(?s)a.csv:3: 'time' is 'yesterday'.*for instance.*a.csv:4: 'time' is 'soon'"):
        read_series(source, Series())


@pytest.mark.parametrize("value", ["1.5", "12.34,5", "1,5,5", "1.2345", "x"])
def test_what_is_no_number_with_a_comma_is_refused(value: str, tmp_path: Path) -> None:
    """1.5 would be 15: a point separates thousands here."""
    source = written(tmp_path / "a.csv", "time;value", "2025-01-01;1,5", f"2025-01-02;{value}")
    with pytest.raises(DataError, match=f"a.csv:3: 'value' is '{value}', not a number like 1.234,5: fix it, or write"):
        read_series(source, Series(decimal=DecimalMark.comma))


@pytest.mark.parametrize(
    ("text", "value"), [("1.234,5", 1234.5), ("1 234", 1234), ("-7", -7), ("1,5e3", 1500), ("", None)]
)
def test_numbers_with_a_comma(text: str, value: float | None, tmp_path: Path) -> None:
    source = written(tmp_path / "a.csv", "time;value", "2025-01-01;1,5", f"2025-01-02;{text}", "2025-01-03;2")
    if value is None:
        with pytest.raises(DataError, match="has no value at 2025-01-02"):
            read_series(source, Series(decimal=DecimalMark.comma))
    else:
        assert read_series(source, Series(decimal=DecimalMark.comma)).series[0].values.tolist() == [1.5, value, 2]


def rows_of(*columns: str, **values: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*values.values(), strict=True)]


def test_what_is_proposed() -> None:
    times = [f"{day:02d}.03.2025 00:00" for day in range(1, 31)]
    iso = [f"2025-03-{day:02d}" for day in range(1, 31)]
    meters, loads = ["A", "B"] * 15, [f"{day},5" for day in range(30)]
    plain = [str(day) for day in range(30)]
    long = rows_of("Zeitpunkt", "Zähler", "Verbrauch", time=times, meter=meters, load=loads)
    assert proposed_reading(long, Series(), {"time": "Zeitpunkt"}) == {
        "columns": {"time": "Zeitpunkt", "value": "Verbrauch", "series": "Zähler"},
        "time_format": "%d.%m.%Y %H:%M",
        "decimal": "comma",
    }
    known = rows_of("tijd", "prijs", "meter", "verbruik", time=iso, price=plain, meter=meters, load=plain)
    assert proposed_reading(known, Series(), {"time": "tijd"})["columns"] == {
        "time": "tijd",
        "value": "verbruik",
        "series": "meter",
    }
    wide = rows_of("time", "north", "south", time=iso, north=plain, south=plain)
    assert proposed_reading(wide, Series(), {}) == {}
    chosen = Series(columns={"time": "Zeitpunkt"}, time_format="%d.%m.%Y %H:%M")
    assert proposed_reading(long, chosen, {}) == {"decimal": "comma"}, "the user has named the columns"


def test_numbers_and_commas() -> None:
    assert has_comma("1,5") and has_comma(" -1.234,50 ") and not has_comma("1.5") and not has_comma("a,b")
    assert not has_comma(1.5) and not has_comma("1,5,2") and not has_comma("1.234")
    assert number_by_comma("-1.234,50") == -1234.5 and number_by_comma("1.234") == 1234


def test_a_column_of_names_among_the_numbers(tmp_path: Path) -> None:
    rows = [f"2025-01-{day:02d};{meter};{day}" for day in range(1, 4) for meter in ("Halle A", "Büro")]
    source = written(tmp_path / "a.csv", "time;Zähler der Firma;Wert", *rows)
    assert refusal(source, Series()) == (
        "a.csv:2: 'Zähler der Firma' is 'Halle A', not a number: fix it, or leave it empty; if this column names the "
        "series, write data.columns.series='Zähler der Firma' data.columns.value=COLUMN "
        "(also a.csv:3, a.csv:4, a.csv:5, ... 6 records in all)"
    )
