"""All faulty records of a file are told at once: the first twenty in full, the others counted."""

import pytest

from aitrain.data.faults import CellError, RecordFaults
from aitrain.errors import DataError


def test_twenty_are_shown_and_the_rest_is_counted() -> None:
    faults = RecordFaults()
    for number in range(1, 24):
        faults.add(DataError(f"a.jsonl:{number}: no answer to {number}\n  write it as {{...}}"))
    with pytest.raises(DataError) as caught:
        faults.refuse("the whole file is too long")
    lines = str(caught.value).splitlines()
    assert lines[:20] == [f"a.jsonl:{number}: no answer to {number}" for number in range(1, 21)]
    assert lines[20:] == [
        "... and 3 more faulty records, 23 in all",
        "  write it as {...}",
        "the whole file is too long",
    ]


def test_the_same_fault_of_many_records_is_said_once() -> None:
    faults = RecordFaults()
    for number in range(1, 61):
        faults.add(DataError(f"a.csv:{number}: no answer\nwrite one"))
    for number in (3, 7):
        faults.add(DataError(f"a.csv:{number}: too old"))
    with pytest.raises(DataError) as caught:
        faults.refuse()
    assert str(caught.value).splitlines() == [
        "a.csv:1: no answer (also a.csv:2, a.csv:3, a.csv:4, ... 60 records in all)",
        "a.csv:3: too old",
        "a.csv:7: too old",
        "write one",
    ]


def test_nothing_is_raised_for_nothing() -> None:
    RecordFaults().refuse()


@pytest.mark.parametrize("count", [3, 4])
def test_cells_with_the_same_reason_are_reported_together(count: int) -> None:
    faults = RecordFaults()
    for number in range(count):
        faults.add(CellError(f"a.csv:{number}: 'load' is '{number},5', not a number", "commas"))
    faults.add(DataError("a.csv:9: something else"))
    few = [f"a.csv:{number}: 'load' is '{number},5', not a number" for number in range(3)]
    many = ["a.csv:0: 'load' is '0,5', not a number (also a.csv:1, a.csv:2, a.csv:3, ... 4 records in all)"]
    assert faults.lines == [*(few if count == 3 else many), "a.csv:9: something else"]
