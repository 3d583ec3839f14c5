"""A report says what was measured, where, and what was not."""

from __future__ import annotations

import csv
import io

from aitrain.bench.ops.tables import Row, in_a_line, to_csv, to_markdown

TIMED = Row("norm", "8x8", "both", "ours", "right", 1e-7, 1.5, 1.4, 1.6, 50, None, 100.0, None, 0.5, 1.0, 2.0)
WRONG = Row("norm", "8x8", "-", "rival", "WRONG", 0.25, note="a | b\nc")
AROUND = {"device": "a GPU", "driver": "1.2"}


def test_csv_has_each_number_and_the_device_in_each_row() -> None:
    read = list(csv.DictReader(io.StringIO(to_csv([TIMED, WRONG], AROUND))))
    assert [row["provider"] for row in read] == ["ours", "rival"]
    assert all(row["device"] == "a GPU" and row["driver"] == "1.2" for row in read)
    assert float(read[0]["median_ms"]) == 1.5 and float(read[0]["share_of_limit"]) == 0.5
    assert read[1]["median_ms"] == "" and read[1]["note"] == "a | b\nc"


def test_markdown_is_one_table_with_as_many_cells_in_each_line() -> None:
    text = to_markdown([TIMED, WRONG], AROUND, ["CCE is absent"])
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 4
    assert "50.0%" in table[2] and "1.4000-1.6000" in table[2] and "100 GB/s" in table[2]
    assert "WRONG a / b c" in table[3]
    assert "- device: a GPU" in text and "- CCE is absent" in text


def test_a_wrong_provider_is_shown_with_its_error_and_without_a_time() -> None:
    assert "WRONG (error 2.5e-01)" in in_a_line(WRONG) and " ms" not in in_a_line(WRONG)
    assert "1.5000 ms" in in_a_line(TIMED)
