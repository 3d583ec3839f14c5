"""The account says what was kept, what was not, and where."""

from pathlib import Path

import numpy as np

from aitrain.data.report import Places, Report, SourceReport


def account() -> SourceReport:
    report = SourceReport("a.jsonl")
    for number, tokens in enumerate([3, 9, 5, 9], start=1):
        report.see(tokens, f"a.jsonl:{number}")
    for number in range(5, 12):
        report.see(1, f"a.jsonl:{number}")
        report.drop("without a trained token", f"a.jsonl:{number}")
    report.truncated.add("a.jsonl:2")
    report.measure(np.array([3, 8, 5, 9]), np.array([1, 2, 3, 4]))
    return report


def test_counts() -> None:
    report = account()
    assert (report.records, report.sequences, report.tokens, report.trained_tokens) == (11, 4, 25, 10)
    assert (report.longest_tokens, report.longest_at) == (9, "a.jsonl:2")
    assert report.length_quantiles["0"] == 3 and report.length_quantiles["100"] == 9
    assert report.dropped["without a trained token"].count == 7


def test_what_people_read() -> None:
    text = Report([account()], 3, 1).text()
    assert "a.jsonl: 11 records, 4 sequences, 25 tokens, 10 trained (40.0 %)" in text
    assert "longest record 9 (a.jsonl:2)" in text
    assert "truncated: 1 (a.jsonl:2)" in text
    places = "a.jsonl:5, a.jsonl:6, a.jsonl:7, a.jsonl:8, a.jsonl:9, ..."
    assert f"dropped: 7 without a trained token ({places})" in text
    assert text.endswith("training on 3 sequences, 1 held out")


def test_round_trip(tmp_path: Path) -> None:
    account().save(tmp_path / "report.json")
    assert SourceReport.load(tmp_path / "report.json") == account()


def test_only_the_first_places_are_kept() -> None:
    places = Places()
    places.add("a")
    assert str(places) == "a"
    for _ in range(10_000):
        places.add("b")
    assert places.count == 10_001 and len(places.first) == 5
